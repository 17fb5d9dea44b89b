"""Finding OomKill: processes that the kernel killed for lack of memory in the last day (pure)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from memdiag_api.containers import ContainerAccount, OomKill, OomScope
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.oom_groups import OomGroup, counted_places, killed_bytes, of_container, oom_groups
from memdiag_node.findings.situation import Situation

_MINUTE, _HOUR = 60, 3600
_MAX_NOTABLE = 3
_MAX_SINGLE = 3
_RECENT_SECONDS = 10 * _MINUTE
_MAX_CLASSES = 3
_MAX_GROUPS = 3
_ADVICE = "Compare the limit with what the container needs, and look for growth in the other findings."


def oom_kills(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for the node if it lacked memory itself, one for each of the latest groups, one for the rest.

    A pod that keeps restarting, or containers that were removed, can lose processes all day: such kills must not fill
    the status. Kills in the window that the kernel log does not have are known from the events of the containers. The
    memory was freed, so the findings account for none.
    """
    kills = situation.measured.oom_kills
    groups = oom_groups(kills)
    rest = [one for one in groups if not one.is_of_node][_MAX_SINGLE:]
    for number, group in enumerate(one for one in groups if one not in rest):
        yield replace(_logged(group), is_notable=number < _MAX_NOTABLE and _is_recent(group.latest))
    if rest:
        yield _summed(rest)
    containers = {kill.container_id for kill in kills}
    pods = {kill.pod_uid for kill in kills if kill.scope is OomScope.CONTAINER and kill.pod_uid}
    for one in situation.measured.containers:
        is_covered = one.container_id in containers or one.pod_uid in pods
        if one.window_oom_kills and one.container_id and not is_covered:
            yield _counted(one, one.window_oom_kills)


def _is_recent(kill: OomKill) -> bool:
    """Whether it may be why somebody looks now. Older ones are still findings."""
    return kill.seconds_ago is None or kill.seconds_ago <= _RECENT_SECONDS


def _logged(group: OomGroup) -> Draft:
    """The finding about one group. Its figures are those of the latest kill."""
    kills, last = group.kills, group.latest
    reasons = [
        f"{format_bytes(last.file_bytes)} of files and {format_bytes(last.shmem_bytes)} of shared memory were mapped"
    ]
    if len(kills) > 1:
        victims = sorted({shown_process(kill.comm, kill.pid) for kill in kills[1:]})
        reasons.append(f"{len(kills) - 1} more were killed before: {', '.join(victims[:_MAX_CLASSES])}")
    if last.classes_bytes:
        largest = sorted(last.classes_bytes.items(), key=lambda item: -item[1])[:_MAX_CLASSES]
        where = "the cgroup" if last.scope is OomScope.CONTAINER else "the node"
        reasons.append(
            f"what was largest in {where} then: " + ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
        )
    victim = f"{shown_process(last.comm, last.pid)}{of_container(last)}"
    if group.has_several_places:
        latest = victim if last.container_id else shown_process(last.comm, last.pid)
        victim = f"{len(kills)} processes{group.where}, the latest {latest}"
    return Draft(
        kind=FindingKind.OOM_KILL,
        is_past=True,
        size_bytes=killed_bytes(last),
        sentence=f"The kernel killed {victim}{_ago(last.seconds_ago)}: {_shortage(last)}, "
        f"anonymous {format_bytes(last.anon_bytes)}.",
        leak=LeakAnswer.NO,
        owner=group.owner,
        confidence=Confidence.HIGH,
        reasons=reasons,
        advice=_ADVICE
        if last.scope is OomScope.CONTAINER
        else "Look in the other findings for what fills the node: the victim need not be the cause.",
        sections=("oomKills", "containers"),
        is_notable=True,
        claims_bytes={},
    )


def _summed(groups: Sequence[OomGroup]) -> Draft:
    """The finding about the groups that have none of their own. Its size is that of the largest process."""
    kills = [kill for one in groups for kill in one.kills]
    largest = sorted(groups, key=lambda one: -killed_bytes(one.largest))[:_MAX_GROUPS]
    what = "another process" if len(kills) == 1 else f"{len(kills)} more processes"
    return Draft(
        kind=FindingKind.OOM_KILL,
        is_past=True,
        size_bytes=killed_bytes(largest[0].largest),
        sentence=f"The kernel killed {what} of {counted_places(groups)}{_in_the_last(kills)} for lack of memory, the "
        f"largest of {format_bytes(killed_bytes(largest[0].largest))}.",
        leak=LeakAnswer.NO,
        owner=groups[0].owner if len(groups) == 1 else MemoryOwner(kind=OwnerKind.NODE),
        confidence=Confidence.HIGH,
        reasons=list(map(_group_text, largest)),
        advice=_ADVICE,
        sections=("oomKills", "containers"),
        claims_bytes={},
    )


def _group_text(group: OomGroup) -> str:
    """Return `5 of 3 containers of pod UID, the largest java[4711] 3 h ago with 480 MiB`."""
    one = group.largest
    where = group.where or (f" at the limit of {one.limit_path}" if one.limit_path else " of an unknown cgroup")
    return (
        f"{len(group.kills)}{where}, the largest "
        f"{shown_process(one.comm, one.pid)}{_ago(one.seconds_ago)} with {format_bytes(killed_bytes(one))}"
    )


def _counted(account: ContainerAccount, kills: int) -> Draft:
    """The finding about kills that only the events of the cgroup show."""
    what = "a process" if kills == 1 else f"{kills} processes"
    return Draft(
        kind=FindingKind.OOM_KILL,
        is_past=True,
        size_bytes=0,
        sentence=f"The kernel killed {what} of container {short_id(account.container_id)} for lack of memory in the "
        "window.",
        leak=LeakAnswer.NO,
        owner=MemoryOwner(kind=OwnerKind.CONTAINER, container_id=account.container_id, pod_uid=account.pod_uid),
        reasons=("the kernel log does not show which: it cannot be read, or was overwritten",),
        advice=_ADVICE,
        sections=("containers",),
        is_notable=True,
        claims_bytes={},
    )


def _shortage(kill: OomKill) -> str:
    if kill.scope is OomScope.NODE:
        return "the node had no memory left"
    return (
        "its limit was reached"
        if kill.limit_bytes is None
        else f"its limit of {format_bytes(kill.limit_bytes)} was reached"
    )


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < _MINUTE:
        return f" {seconds:.0f} s ago"
    return f" {seconds / _MINUTE:.0f} min ago" if seconds < _HOUR else f" {seconds / _HOUR:.0f} h ago"


def _in_the_last(kills: Sequence[OomKill]) -> str:
    """Return ` in the last 19 h`, a time within which all were. Empty if it is not known of all."""
    times = [one.seconds_ago for one in kills if one.seconds_ago is not None]
    if len(times) < len(kills):
        return ""
    minutes = math.ceil(max(times) / _MINUTE) or 1
    return f" in the last {minutes} min" if minutes < _MINUTE else f" in the last {math.ceil(minutes / _MINUTE)} h"
