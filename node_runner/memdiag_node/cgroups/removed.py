"""Memory cgroups that were removed but not freed, and what is charged to them (pure)."""

from collections.abc import Mapping, Sequence

import numpy as np

from memdiag_api import limits
from memdiag_api.containers import RemovedCgroups, RemovedGroupShare
from memdiag_node.cgroups.counters import Counters
from memdiag_node.cgroups.tree import MemoryCgroup
from memdiag_node.procfs.text import printable

_FILE_LISTS, _ANON_LISTS = (2, 3), (0, 1, 4)
_MAX_PATH = 253


def removed_cgroups(
    groups: Sequence[MemoryCgroup],
    counters: Counters | None,
    at: Mapping[str, int],
    *,
    cpus: int,
    nodes: int,
    page_bytes: int,
    removed_before: int | None = None,
    charged_slab: tuple[int, int] | None = None,
) -> RemovedCgroups | None:
    """Return the removed cgroups of a node with so many possible CPUs and NUMA nodes. None if none can be read.

    `removed_before`: their number at the start of the window. `charged_slab`: the number of removed cgroups with
    charged slab objects and the bytes of these objects, from the census of slabs.

    The usage that the kernel keeps of a removed cgroup is not used: it includes slab that was passed to the parent.
    """
    if not groups:
        return None
    removed = np.array([one.is_removed for one in groups])
    count = int(removed.sum())
    lru = None if counters is None or counters.lru_pages is None else counters.lru_pages * page_bytes
    swap = None if counters is None or counters.swap_pages is None else counters.swap_pages * page_bytes
    charged = np.zeros(len(groups), np.int64) if lru is None else lru.sum(axis=1)
    return RemovedCgroups(
        live=len(groups) - count,
        removed=count,
        removed_change=None if removed_before is None else count - removed_before,
        percpu_bytes=count * cpus * (at.get("GROUP_CPU_BYTES", 0) + nodes * at.get("GROUP_CPU_NODE_BYTES", 0)),
        struct_bytes=count * (at.get("GROUP_BYTES", 0) + nodes * at.get("GROUP_NODE_BYTES", 0)),
        file_bytes=None if lru is None else int(lru[removed][:, _FILE_LISTS].sum()),
        anon_bytes=None if lru is None else int(lru[removed][:, _ANON_LISTS].sum()),
        swap_bytes=None if swap is None else max(0, int(swap[removed].sum())),
        charged_slab_groups=charged_slab[0] if charged_slab else None,
        charged_slab_bytes=charged_slab[1] if charged_slab else None,
        shares=_shares(groups, charged.tolist()),
    )


def removed_count(groups: Sequence[MemoryCgroup]) -> int | None:
    """Return how many of the groups are removed, for a comparison later. None if there are no groups."""
    return sum(one.is_removed for one in groups) if groups else None


def _shares(groups: Sequence[MemoryCgroup], charged_bytes: Sequence[int]) -> list[RemovedGroupShare]:
    """Return where the removed groups were: by container and pod, else by the nearest group that still exists."""
    found: dict[tuple[str, str, bytes], list[int]] = {}
    for one, size_bytes in zip(groups, charged_bytes, strict=True):
        if not one.is_removed:
            continue
        above = groups[one.parent]
        while above.is_removed:
            above = groups[above.parent]
        total = found.setdefault((one.identity.container_id, one.identity.pod_uid, above.path), [0, 0])
        total[0] += 1
        total[1] += size_bytes
    largest = sorted(found.items(), key=lambda item: (-item[1][1], -item[1][0]))
    return [
        RemovedGroupShare(
            container_id=container,
            pod_uid=pod,
            path=printable(path or b"/", _MAX_PATH),
            groups=count,
            charged_bytes=size_bytes,
        )
        for (container, pod, path), (count, size_bytes) in largest[: limits.MAX_REMOVED_GROUP_SHARES]
    ]
