"""Processes that the kernel killed for lack of memory, with their containers (pure)."""

from collections.abc import Sequence

from memdiag_api import limits
from memdiag_api.containers import OomKill, OomScope
from memdiag_node.procfs.cgroup import ContainerIdentity, parse_cgroup
from memdiag_node.procfs.oom_messages import OomMessage
from memdiag_node.procfs.text import printable

RECENT_SECONDS = 86_400.0
_MAX_COMM = 64
_MAX_PATH = 253
_NONE = ContainerIdentity("", "")


def oom_kills(messages: Sequence[OomMessage], *, now_seconds: float) -> list[OomKill]:
    """Return the kills of the last RECENT_SECONDS, latest first, as many as a document can have.

    `now_seconds` is the clock of the log (CLOCK_MONOTONIC). A kill without a time stamp counts as recent.
    """
    found = []
    for one in reversed(messages):
        seconds_ago = None if one.log_seconds is None else max(0.0, now_seconds - one.log_seconds)
        if seconds_ago is None or seconds_ago <= RECENT_SECONDS:
            found.append(_kill(one, seconds_ago))
    return found[: limits.MAX_OOM_KILLS]


def _kill(message: OomMessage, seconds_ago: float | None) -> OomKill:
    victim = _identity(message.victim_path)
    if victim == _NONE:
        victim = _identity(message.limited_path)
    largest = sorted(message.classes_bytes.items(), key=lambda item: -item[1])
    return OomKill(
        seconds_ago=seconds_ago,
        scope=OomScope.CONTAINER if message.is_of_cgroup else OomScope.NODE,
        container_id=victim.container_id,
        pod_uid=victim.pod_uid,
        limit_path=printable(message.limited_path, _MAX_PATH),
        comm=printable(message.comm, _MAX_COMM),
        pid=message.pid,
        anon_bytes=message.anon_bytes,
        file_bytes=message.file_bytes,
        shmem_bytes=message.shmem_bytes,
        page_table_bytes=message.page_table_bytes,
        limit_bytes=message.limit_bytes,
        limit_hits=message.limit_hits,
        classes_bytes={name: size for name, size in largest[: limits.MAX_OOM_CLASSES] if size},
    )


def _identity(path: bytes) -> ContainerIdentity:
    return parse_cgroup(b"0::" + path.replace(b"\n", b"?")) if path else _NONE
