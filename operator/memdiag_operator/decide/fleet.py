"""How diagnoses and runner pods affect each other: who holds a slot, who waits for one, who may not start yet.

A diagnosis of a thousand nodes has a status of 200 KiB. Decisions about all diagnoses see each only as a `Claim`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from memdiag_operator.kube.objects import Pod


@dataclass(frozen=True, slots=True)
class Claim:
    """What one diagnosis wants of the cluster."""

    uid: str
    name: str
    created: datetime | None = None
    run_id: str = ""
    """The latest run."""
    is_settled: bool = False
    """Whether there is nothing more to do for it, see `lifecycle.is_settled`."""
    is_under_way: bool = False
    """Whether it has started a run that has not ended."""
    unsettled_nodes: int = 0
    """Nodes whose part of that run has not ended."""
    wants_to_start: bool = False
    """Whether a run should start as soon as the limits on unfinished ones allow it."""
    nodes_wanted: int = 0
    """Maximum number of nodes of the run that should start."""
    selects_nodes: bool = False
    """Whether the nodes of that run are chosen from a list of the cluster's nodes."""
    says_limit_reached: bool = False
    """Whether its status already says that it has to wait for the limits."""
    waiting_since: datetime | None = None
    """Start time of the run whose nodes wait for slots; None if no runner may be started for it."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """Names of the nodes that have not been measured yet, with their place in the run."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every runner pod and every diagnosis of the cluster."""

    pods: tuple[Pod, ...]
    claims: tuple[Claim, ...]

    @property
    def owners(self) -> frozenset[str]:
        """UIDs of the diagnoses that have runner pods."""
        return frozenset(owner.uid for pod in self.pods for owner in pod.metadata.owner_references)

    @property
    def unsettled_names(self) -> tuple[str, ...]:
        """The diagnoses that still need work: a run, a time to live, a pod to remove."""
        owners = self.owners
        return tuple(claim.name for claim in self.claims if not claim.is_settled or claim.uid in owners)
