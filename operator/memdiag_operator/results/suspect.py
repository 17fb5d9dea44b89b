"""The stuck sockets of a suspect, summed up: of its process, its container or its pod."""

from collections.abc import Sequence

from memdiag_api.diagnosis import HolderSummary
from memdiag_api.evidence import Evidence, Owner, SuspectScope
from memdiag_api.limits import MAX_TOP_FDS


def whole_suspect(evidence: Evidence, index: int, holders: Sequence[HolderSummary]) -> HolderSummary:
    """The prime suspect with all stuck sockets that the verdict sums up."""
    verdict = evidence.verdict
    return summed_up(
        evidence,
        index,
        holders,
        scope=verdict.scope,
        pinned_bytes=verdict.suspect_bytes,
        unread_bytes=verdict.suspect_unread_bytes,
    )


def summed_up(
    evidence: Evidence,
    index: int,
    holders: Sequence[HolderSummary],
    *,
    scope: SuspectScope | None,
    pinned_bytes: int,
    unread_bytes: int = 0,
) -> HolderSummary:
    """The holder of `index` with the figures of all stuck sockets that have the owner of `scope` in common with it.

    A sum of 0 is not known. A socket without a process has nothing in common with others: it is reported alone.
    """
    suspect, owners = holders[index], evidence.holders[index].owners
    if not suspect.stuck_seconds:
        return suspect
    if not owners:  # with the heads of its packets, which the sum counts too
        return suspect.model_copy(update={"pinned_bytes": pinned_bytes or suspect.pinned_bytes})
    same = [
        holders[number]
        for number, one in enumerate(evidence.holders)
        if one.stuck_seconds and one.owners and _key(one.owners[0], scope) == _key(owners[0], scope)
    ]
    return suspect.model_copy(
        update={
            "fds": sorted({fd for one in same if one.pid == suspect.pid for fd in one.fds})[:MAX_TOP_FDS],
            "unread_bytes": unread_bytes or sum(one.unread_bytes for one in same),
            "pinned_bytes": pinned_bytes or suspect.pinned_bytes,
        }
    )


def _key(owner: Owner, scope: SuspectScope | None) -> object:
    """What the sockets of a suspect have in common."""
    match scope:
        case SuspectScope.CONTAINER:
            return owner.container_id
        case SuspectScope.POD:
            return owner.pod_uid
        case _:
            return owner.pid
