"""How much may be in progress at the same time; the rest waits, the oldest request first.

Diagnoses are cluster-scoped, so no ResourceQuota bounds them, and they do not record who created them: without limits,
anyone who may create them could make the operator keep and process any number of them.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from memdiag_operator.config import LimitSettings
from memdiag_operator.decide.fleet import Claim

_EARLIEST = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is in progress."""

    diagnoses: int
    node_runs: int

    def is_within(self, limits: LimitSettings) -> bool:
        """Whether `limits` allow it."""
        return self.diagnoses <= limits.unfinished_diagnoses and self.node_runs <= limits.node_runs


def load(claims: Iterable[Claim], starting: Collection[str] = ()) -> Load:
    """What is in progress; `starting`: names of those that start right now, which their status does not show yet."""
    diagnoses = node_runs = 0
    for claim in claims:
        if claim.is_under_way or claim.name in starting:
            diagnoses += 1
            node_runs += claim.unsettled_nodes if claim.is_under_way else claim.nodes_wanted
    return Load(diagnoses, node_runs)


def may_start(claim: Claim, claims: Iterable[Claim], starting: Collection[str], limits: LimitSettings) -> bool:
    """Whether the run of `claim` may start: everything that is in progress or older leaves room for it."""
    place = _place(claim)
    counted = [
        one
        for one in claims
        if one.is_under_way or one.name in starting or (one.wants_to_start and _place(one) <= place)
    ]
    return load(counted, {one.name for one in counted}).is_within(limits)


def held_back(claims: Iterable[Claim], starting: Collection[str], limits: LimitSettings) -> frozenset[str]:
    """Names of those that may not start: the oldest that does not fit, and all younger ones."""
    claims = tuple(claims)
    total = load(claims, starting)
    waiting = sorted((one for one in claims if one.wants_to_start and one.name not in starting), key=_place)
    diagnoses, node_runs = total.diagnoses, total.node_runs
    for index, claim in enumerate(waiting):
        diagnoses, node_runs = diagnoses + 1, node_runs + claim.nodes_wanted
        if not Load(diagnoses, node_runs).is_within(limits):
            return frozenset(one.name for one in waiting[index:])
    return frozenset()


def _place(claim: Claim) -> tuple[datetime, str]:
    return claim.created or _EARLIEST, claim.name


def why_it_waits(limits: LimitSettings) -> str:
    """The message of a diagnosis that may not start. It stays the same: a change would be written by all that wait."""
    return (
        f"waiting to start: at most {limits.unfinished_diagnoses} diagnoses (limits.unfinishedDiagnoses in the "
        f"operator's configuration) and {limits.node_runs} node runs (limits.nodeRuns) can be in progress at the same "
        "time, and the oldest request comes first. The run starts automatically when others have ended; "
        "`kubectl get memorydiagnoses` lists them. Terminate or delete those that are not needed, or raise the limits"
    )
