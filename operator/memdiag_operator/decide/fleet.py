"""What diagnoses and runner pods mean to each other: who holds a slot, who waits for one, who may not begin yet.

A diagnosis of a thousand nodes has a status of 200 KiB. Of a hundred such, only these few words are looked at together.
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
    """Whether nothing more is to be done for it, see `lifecycle.is_settled`."""
    is_under_way: bool = False
    """Whether it has begun a run that has not ended."""
    unsettled_nodes: int = 0
    """Nodes whose part of that run has not ended."""
    wants_to_start: bool = False
    """Whether a run is to begin as soon as the limits on unfinished ones allow it."""
    nodes_wanted: int = 0
    """Of the run that is to begin: on how many nodes at most."""
    selects_nodes: bool = False
    """Whether the nodes of that run are chosen from a list of the cluster's nodes."""
    says_limit_reached: bool = False
    """Whether its status says already that it has to wait for that."""
    waiting_since: datetime | None = None
    """When the run began whose nodes wait for slots; None when no runner may be started for it."""
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
        """The diagnoses that something is still to be done for: a run, a time to live, a pod to remove."""
        owners = self.owners
        return tuple(claim.name for claim in self.claims if not claim.is_settled or claim.uid in owners)
