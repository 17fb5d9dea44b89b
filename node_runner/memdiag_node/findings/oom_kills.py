"""Finding OomKill: processes that the kernel killed for lack of memory in the last day (pure)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from memdiag_api.containers import ContainerAccount, OomKill, OomScope
from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.situation import Situation

_MINUTE, _HOUR = 60, 3600
_MAX_NOTABLE = 3
_RECENT_SECONDS = 10 * _MINUTE
_MAX_CLASSES = 3


def oom_kills(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each container that lost processes, and one for the node if it lacked memory itself.

    Kills in the window that the kernel log does not have are known from the events of the containers. The memory was
    freed, so the finding accounts for none.
    """
    kills = situation.measured.oom_kills
    by_place: dict[tuple[OomScope, str, str, str], list[OomKill]] = {}
    for kill in kills:
        place = (kill.container_id, kill.pod_uid, kill.limit_path) if kill.scope is OomScope.CONTAINER else ("", "", "")
        by_place.setdefault((kill.scope, *place), []).append(kill)
    for number, same in enumerate(by_place.values()):
        yield replace(_logged(same), is_notable=number < _MAX_NOTABLE and _is_recent(same[0]))
    logged = {kill.container_id for kill in kills}
    for one in situation.measured.containers:
        if one.window_oom_kills and one.container_id and one.container_id not in logged:
            yield _counted(one, one.window_oom_kills)


def _is_recent(kill: OomKill) -> bool:
    """Whether it may be why somebody looks now. Older ones are still findings."""
    return kill.seconds_ago is None or kill.seconds_ago <= _RECENT_SECONDS


def _logged(kills: Sequence[OomKill]) -> Draft:
    """The finding about these kills, of which the first is the latest."""
    last = kills[0]
    killed_bytes = last.anon_bytes + last.file_bytes + last.shmem_bytes
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
    return Draft(
        kind=FindingKind.OOM_KILL,
        is_past=True,
        size_bytes=killed_bytes,
        sentence=f"The kernel killed {shown_process(last.comm, last.pid)}{_of_container(last)}"
        f"{_ago(last.seconds_ago)}: {_shortage(last)}, anonymous {format_bytes(last.anon_bytes)}.",
        leak=LeakAnswer.NO,
        owner=_owner(last),
        confidence=Confidence.HIGH,
        reasons=reasons,
        advice="Compare the limit with what the container needs, and look for growth in the other findings."
        if last.scope is OomScope.CONTAINER
        else "Look in the other findings for what fills the node: the victim need not be the cause.",
        sections=("oomKills", "containers"),
        is_notable=True,
        claims_bytes={},
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
        advice="Compare the limit with what the container needs, and look for growth in the other findings.",
        sections=("containers",),
        is_notable=True,
        claims_bytes={},
    )


def _owner(kill: OomKill) -> MemoryOwner:
    if kill.scope is OomScope.NODE:
        return MemoryOwner(kind=OwnerKind.NODE)
    if kill.container_id or kill.pod_uid:
        kind = OwnerKind.CONTAINER if kill.container_id else OwnerKind.POD
        return MemoryOwner(kind=kind, container_id=kill.container_id, pod_uid=kill.pod_uid)
    return MemoryOwner(kind=OwnerKind.CGROUP, name=kill.limit_path)


def _of_container(kill: OomKill) -> str:
    if kill.container_id:
        return f" of container {short_id(kill.container_id)}"
    return f" of pod {kill.pod_uid}" if kill.pod_uid else ""


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
