"""Finding ContainerNearLimit: a container or pod that uses most of its limit, and what fills it (pure)."""

from collections.abc import Iterator, Sequence

from memdiag_api.containers import ContainerAccount
from memdiag_api.findings import Confidence, FindingKind, FindingTrend, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.situation import Situation

NEAR_LIMIT_SHARE = 0.9
_PART_SHARE = 0.05
_MAX_PARTS = 4
_Part = tuple[str, ClassName, int]


def containers_near_limit(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each container and pod that uses NEAR_LIMIT_SHARE of its limit, or reached it in the window.

    It is not a leak by itself: other findings are about the memory, so this one accounts for none. Page cache fills
    every limit in time, and the kernel gives it back. So the finding is notable only if the limit was reached in the
    window, or if the working set is near the limit too.
    """
    for one in situation.measured.containers:
        was_hit = bool(one.window_limit_hits or one.window_oom_kills)
        if one.limit_bytes is None or not (one.usage_bytes >= NEAR_LIMIT_SHARE * one.limit_bytes or was_hit):
            continue
        parts = _parts(one)
        is_cache = one.reclaimable_bytes is not None and 2 * one.reclaimable_bytes > one.usage_bytes
        working_set_bytes = one.usage_bytes if one.working_set_bytes is None else one.working_set_bytes
        yield Draft(
            kind=FindingKind.CONTAINER_NEAR_LIMIT,
            size_bytes=one.usage_bytes,
            sentence=_sentence(one, parts, is_cache=is_cache),
            leak=LeakAnswer.NO,
            memory_class=parts[0][1] if parts else "",
            owner=MemoryOwner(
                kind=OwnerKind.CONTAINER if one.container_id else OwnerKind.POD,
                container_id=one.container_id,
                pod_uid=one.pod_uid,
            ),
            trend=_trend(one, situation.measured.window_seconds),
            reclaimable=is_cache,
            confidence=Confidence.HIGH if parts else Confidence.MEDIUM,
            reasons=tuple(_reasons(one, working_set_bytes)),
            advice=_advice(parts, is_cache=is_cache),
            sections=("containers",),
            is_notable=was_hit or working_set_bytes >= NEAR_LIMIT_SHARE * one.limit_bytes,
            claims_bytes={},
        )


def _parts(one: ContainerAccount) -> list[_Part]:
    """The largest parts of the usage, largest first. A figure that is not known is in none."""
    other_kernel_bytes = max(0, (one.kernel_bytes or 0) - (one.slab_bytes or 0))
    parts: list[_Part] = [
        ("anonymous", ClassName.ANON_PAGES, one.anon_bytes or 0),
        ("file cache", ClassName.FILE_CACHE, one.file_bytes or 0),
        ("shared memory and tmpfs", ClassName.SHMEM, one.shmem_bytes or 0),
        ("socket memory", ClassName.ALLOC_PAGE, one.socket_bytes or 0),
        ("slab", ClassName.SLAB, one.slab_bytes or 0),
        ("other kernel memory", ClassName.ALLOC_PAGE, other_kernel_bytes),
    ]
    large = [part for part in parts if part[2] >= max(1, _PART_SHARE * one.usage_bytes)]
    return sorted(large, key=lambda part: -part[2])[:_MAX_PARTS]


def _sentence(one: ContainerAccount, parts: Sequence[_Part], *, is_cache: bool) -> str:
    who = f"Container {short_id(one.container_id)}" if one.container_id else f"Pod {one.pod_uid}"
    sentence = f"{who} uses {format_bytes(one.usage_bytes)} of {format_bytes(one.limit_bytes or 0)}"
    if parts:
        sentence += ": " + ", ".join(f"{format_bytes(size_bytes)} {what}" for what, _, size_bytes in parts)
    return f"{sentence}; most of it is cache that the kernel gives back." if is_cache else f"{sentence}."


def _reasons(one: ContainerAccount, working_set_bytes: int) -> Iterator[str]:
    limit_bytes = max(1, one.limit_bytes or 0)
    yield f"the working set (as the kubelet computes it) is {working_set_bytes / limit_bytes:.0%} of the limit"
    if one.reclaimable_bytes is not None:
        yield f"the kernel would give back {format_bytes(one.reclaimable_bytes)} of it"
    if one.limit_hits:
        yield f"the limit was reached {one.limit_hits} times{_in_window(one.window_limit_hits)}"
    if one.oom_kills:
        yield f"the kernel killed {one.oom_kills} of its processes{_in_window(one.window_oom_kills)}"
    if one.swap_bytes:
        yield f"{format_bytes(one.swap_bytes)} more are in swap"
    if one.files and (one.file_bytes or 0) + (one.shmem_bytes or 0) >= _PART_SHARE * one.usage_bytes:
        largest = ", ".join(f"{file.path} {format_bytes(file.cached_bytes)}" for file in one.files)
        yield f"its largest files in memory: {largest}"


def _in_window(count: int | None) -> str:
    return "" if count is None else f", {count} of them in the window"


def _trend(one: ContainerAccount, window_seconds: float) -> FindingTrend | None:
    if one.usage_change_bytes is None or window_seconds <= 0:
        return None
    return FindingTrend(bytes_per_second=one.usage_change_bytes / window_seconds, over_seconds=window_seconds)


def _advice(parts: Sequence[_Part], *, is_cache: bool) -> str:
    if is_cache:
        return (
            "Raise the limit if it is reached often: then files are read or written faster than the cache can be "
            "dropped."
        )
    by_part = {
        "anonymous": "Check the processes of the container, and whether its limit fits them.",
        "shared memory and tmpfs": "Check the files in tmpfs, emptyDir volumes of medium Memory and /dev/shm: "
        "they count until they are deleted.",
        "socket memory": "Check the other findings for sockets of the container with unread or unsent data.",
    }
    first = parts[0][0] if parts else ""
    return by_part.get(first, "Check the other findings for kernel objects of the container.")
