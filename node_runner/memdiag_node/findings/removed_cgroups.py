"""Finding RemovedCgroups: memory cgroups that were removed but not freed (pure)."""

from collections.abc import Iterator

from memdiag_api.containers import RemovedCgroups, RemovedGroupShare
from memdiag_api.findings import Confidence, FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.situation import Situation

MANY_REMOVED = 1_000
"""So many removed cgroups are worth a finding, however little they hold: the kernel walks all of them in reclaim."""
LEAKED_RATIO = 10
"""So many times more removed than live cgroups may be a leak."""
_GROWTH_SHARE = 0.01


def removed_cgroups(situation: Situation) -> Iterator[Draft]:
    """Yield a finding if there are MANY_REMOVED, or if they hold a notable amount of memory.

    Removed cgroups are freed with the last page that is charged to them, and the kernel gives page cache back. So they
    are not a leak by themselves, and page cache alone is not notable. Whether they are one is not known if there are
    LEAKED_RATIO times more of them than live ones, and if they pin a notable amount of memory or become more.
    """
    found = situation.measured.removed_cgroups
    if found is None or not found.removed:
        return
    holds_much = found.held_bytes >= situation.notable_bytes
    if found.removed < MANY_REMOVED and not holds_much:
        return
    is_growing = (found.removed_change or 0) >= max(1.0, _GROWTH_SHARE * found.removed)
    pins_much = found.pinned_bytes >= situation.notable_bytes
    is_doubtful = found.removed > LEAKED_RATIO * found.live and (pins_much or is_growing)
    yield Draft(
        kind=FindingKind.REMOVED_CGROUPS,
        size_bytes=found.pinned_bytes if pins_much else found.held_bytes,  # the kernel gives page cache back
        sentence=f"{found.removed:,} removed memory cgroups are not freed, and hold {format_bytes(found.held_bytes)}: "
        f"{', '.join(f'{format_bytes(size_bytes)} {what}' for what, size_bytes in _parts(found))}.",
        leak=LeakAnswer.UNKNOWN if is_doubtful else LeakAnswer.NO,
        memory_class=_largest_class(found, with_file_cache=not pins_much),
        owner=_owner(found),
        freed_by=FreedBy(
            action="Write 3 to /proc/sys/vm/drop_caches: a removed cgroup is freed with the last page that is charged "
            "to it. Pages that a process has mapped, and files in tmpfs, stay.",
            size_bytes=_freed_bytes(found),
        ),
        confidence=Confidence.MEDIUM if found.file_bytes is not None else Confidence.LOW,
        reasons=tuple(_reasons(found)),
        advice="Check what creates and removes so many cgroups: crashing containers, exec probes, cron jobs, user "
        "sessions. Memory of files on shared volumes and in tmpfs keeps the cgroup of the process that first read or "
        "wrote it.",
        sections=("removedCgroups", "census.slab"),
        is_notable=found.removed >= MANY_REMOVED or pins_much,
        reclaimable=not pins_much and (found.file_bytes or 0) > found.pinned_bytes,
        claims_bytes={ClassName.PERCPU: found.percpu_bytes},  # slab and page cache have findings of their own
    )


def _freed_bytes(found: RemovedCgroups) -> int | None:
    """Return what comes back if the kernel drops its caches; with other pages, at least the page cache.

    None if it is not known what is charged to them.
    """
    if found.file_bytes is None or found.anon_bytes:
        return found.file_bytes
    return found.held_bytes


def _parts(found: RemovedCgroups) -> list[tuple[str, int]]:
    parts = [
        ("per-CPU memory (estimated)", found.percpu_bytes),
        ("structures (estimated)", found.struct_bytes),
        ("page cache", found.file_bytes or 0),
        ("anonymous and shared memory", found.anon_bytes or 0),
    ]
    return sorted(((what, size) for what, size in parts if size), key=lambda part: -part[1])


def _largest_class(found: RemovedCgroups, *, with_file_cache: bool) -> ClassName:
    sizes = {
        ClassName.PERCPU: found.percpu_bytes,
        ClassName.SUNRECLAIM: found.struct_bytes,
        ClassName.FILE_CACHE: (found.file_bytes or 0) * with_file_cache,
        ClassName.SHMEM: found.anon_bytes or 0,
    }
    return max(sizes, key=lambda name: sizes[name])


def _owner(found: RemovedCgroups) -> MemoryOwner | None:
    """The place of most of them, if one place has more than half."""
    for share in found.shares:
        if 2 * share.groups > found.removed:
            return MemoryOwner(
                kind=OwnerKind.POD if share.pod_uid else OwnerKind.CGROUP,
                name="" if share.pod_uid else share.path,
                pod_uid=share.pod_uid,
            )
    return None


def _reasons(found: RemovedCgroups) -> Iterator[str]:
    yield f"{found.live} memory cgroups exist, {found.removed} were removed"
    if found.removed_change:
        yield f"the number of removed ones changed by {found.removed_change:+} in the window"
    for share in found.shares[:3]:
        yield f"{share.groups} of them were {_place(share)}, with {format_bytes(share.charged_bytes)} charged"
    if found.charged_slab_bytes:
        yield (
            f"{format_bytes(found.charged_slab_bytes)} of slab objects were charged to removed cgroups, and are passed "
            "to the cgroups above"
        )


def _place(share: RemovedGroupShare) -> str:
    if share.container_id:
        return f"of container {short_id(share.container_id)}"
    return f"of pod {share.pod_uid}" if share.pod_uid else f"below {share.path}"
