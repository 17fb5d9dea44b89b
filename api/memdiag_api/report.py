"""The MemoryDiagnosisReport custom resource: the complete evidence of one node and run, owned by its diagnosis."""

from typing import ClassVar

from pydantic import Field

from memdiag_api import limits
from memdiag_api.diagnosis import DnsSubdomain
from memdiag_api.evidence import Evidence
from memdiag_api.model import ApiModel, ShortText


class ContainerIdentity(ApiModel):
    """ContainerIdentity maps a container ID in the evidence to names from the API server."""

    container_id: ShortText = Field(description="ID of the container, as in the evidence.")
    namespace: ShortText = Field(description="Namespace of the pod.")
    pod: ShortText = Field(description="Name of the pod that runs it on this node.")
    container: ShortText = Field(description="Name of the container in the pod.")


class MemoryDiagnosisReport(ApiModel):
    """MemoryDiagnosisReport contains what the runner on one node measured.

    It is validated but not trusted, because the node itself wrote it.
    """

    KIND: ClassVar[str] = "MemoryDiagnosisReport"
    PLURAL: ClassVar[str] = "memorydiagnosisreports"
    SINGULAR: ClassVar[str] = "memorydiagnosisreport"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("memdiagreport",)

    diagnosis: ShortText = Field(description="Name of the MemoryDiagnosis that requested the report.")
    run_id: ShortText = Field(description="ID of the run that it belongs to.")
    node_name: DnsSubdomain = Field(
        description="Name of the node on which the runner pod ran, as reported by the API server."
    )
    pod_name: ShortText = Field(description="Name of the runner pod that delivered it.")
    suspect: ShortText = Field(default="", description="The first finding, in one short line.")
    containers: list[ContainerIdentity] = Field(
        default_factory=list,
        max_length=limits.MAX_NAMED_CONTAINERS,
        description="Names of the containers whose IDs are in the evidence.",
    )
    evidence: Evidence
