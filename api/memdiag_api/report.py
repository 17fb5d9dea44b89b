"""The MemoryDiagnosisReport custom resource: the whole evidence of one node and run, owned by its diagnosis."""

from typing import ClassVar

from pydantic import Field

from memdiag_api import limits
from memdiag_api.diagnosis import DnsSubdomain
from memdiag_api.evidence import Evidence
from memdiag_api.model import ApiModel, ShortText


class ContainerIdentity(ApiModel):
    """Names of a container that the evidence mentions by id, as the API server knows it."""

    container_id: ShortText = Field(description="as the evidence has it")
    namespace: ShortText = Field(description="of the pod")
    pod: ShortText = Field(description="the pod that runs it on this node")
    container: ShortText = Field(description="its name in that pod")


class MemoryDiagnosisReport(ApiModel):
    """What one node's runner measured, validated but untrusted: the node itself wrote it."""

    KIND: ClassVar[str] = "MemoryDiagnosisReport"
    PLURAL: ClassVar[str] = "memorydiagnosisreports"
    SINGULAR: ClassVar[str] = "memorydiagnosisreport"
    SHORT_NAMES: ClassVar[tuple[str, ...]] = ("memdiagreport",)

    diagnosis: ShortText = Field(description="the MemoryDiagnosis that asked")
    run_id: ShortText = Field(description="the run that it belongs to")
    node_name: DnsSubdomain = Field(description="the node that the runner pod ran on, by the API server")
    pod_name: ShortText = Field(description="the runner pod that delivered it")
    suspect: ShortText = Field(default="", description="the prime suspect in one short line")
    containers: list[ContainerIdentity] = Field(
        default_factory=list,
        max_length=limits.MAX_NAMED_CONTAINERS,
        description="names of the containers that the evidence mentions by id",
    )
    evidence: Evidence
