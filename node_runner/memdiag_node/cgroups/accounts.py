"""The account of each container and pod, from the counters of the memory cgroups (pure)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from memdiag_api import limits
from memdiag_api.census.files import CachedFile, FileCensus
from memdiag_api.containers import ChargedFile, ContainerAccount
from memdiag_node.cgroups.counters import Counters, Counts, subtree
from memdiag_node.cgroups.tree import MemoryCgroup
from memdiag_node.procfs.cgroup import ContainerIdentity

_INACTIVE_FILE, _ACTIVE_FILE = 2, 3


class ChargedUse(Protocol):
    """What the census of page frames counts for one memory cgroup alone, in frames."""

    @property
    def anonymous(self) -> int:
        """Frames of anonymous memory."""
        ...

    @property
    def file(self) -> int:
        """Frames of the page cache, without shmem."""
        ...

    @property
    def shmem(self) -> int:
        """Frames of shmem."""
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """The account of a container or a pod, and the cgroups that it covers."""

    record: ContainerAccount
    inode: int
    """Of its own cgroup."""
    inodes: frozenset[int]
    """Of its cgroup and those below, by which frames are charged."""
    has_own_limit: bool
    limit_inode: int = 0
    """Of the cgroup with its effective limit; 0 if there is none."""


def accounts(
    groups: Sequence[MemoryCgroup],
    counters: Counters,
    earlier: Mapping[int, ContainerAccount] | None = None,
    *,
    page_bytes: int,
) -> list[Account]:
    """Return the account of each container, and of each pod whose limit is not that of one of its containers.

    `earlier` has the accounts of the start of the window, by the inode of the cgroup (`by_inode`). Largest usage first.
    """
    chosen = [number for number, one in enumerate(groups) if _is_account(groups, one)]
    covered = _inodes_below(groups, chosen)
    limit_pages, limited_by = _effective_limits(groups, counters)
    columns = _Columns(groups, counters, page_bytes)
    found = []
    for number in chosen:
        one = groups[number]
        record = columns.record(number, one.identity)
        is_limited = limit_pages[number] < _no_limit_pages(page_bytes)
        if is_limited:
            record = record.model_copy(update={"limit_bytes": limit_pages[number] * page_bytes})
        before = earlier.get(one.inode) if earlier is not None else None
        found.append(
            Account(
                record=_with_change(record, before, is_new=earlier is not None and before is None),
                inode=one.inode,
                inodes=covered[number],
                has_own_limit=is_limited and limited_by[number] == number,
                limit_inode=groups[limited_by[number]].inode if is_limited else 0,
            )
        )
    return sorted(_shown(found), key=lambda account: -account.record.usage_bytes)


def by_inode(found: Sequence[Account]) -> dict[int, ContainerAccount]:
    """Return the accounts by the inode of their cgroup, for `accounts` at the end of the window."""
    return {one.inode: one.record for one in found}


def with_frames(
    found: Sequence[Account], frames_by_inode: Mapping[int, ChargedUse], *, page_bytes: int
) -> list[Account]:
    """Return the accounts with the anonymous, file and shared memory that a census of frames counted for them.

    The census is exact at its time. It replaces the kernel's own figures, which are up to two seconds old, and stands
    in for them where this kernel's cannot be read.
    """
    filled = []
    for one in found:
        uses = [frames_by_inode[inode] for inode in one.inodes if inode in frames_by_inode]
        figures = {
            "anon_bytes": sum(use.anonymous for use in uses) * page_bytes,
            "file_bytes": sum(use.file for use in uses) * page_bytes,
            "shmem_bytes": sum(use.shmem for use in uses) * page_bytes,
        }
        filled.append(replace(one, record=one.record.model_copy(update=figures)) if uses else one)
    return filled


def account_records(found: Sequence[Account], files: FileCensus | None = None) -> list[ContainerAccount]:
    """Return the accounts for the document, largest usage first, as many as it can have, with their files."""
    named = [one for one in files.files if one.path and one.charged] if files else []
    return [
        one.record.model_copy(update={"files": _files(one.record, named)})
        for one in found[: limits.MAX_CONTAINER_ACCOUNTS]
    ]


def _files(account: ContainerAccount, files: Sequence[CachedFile]) -> list[ChargedFile]:
    """Return the first of `files`, sorted by size, that are charged to it. A pod has those of its containers."""
    identity = (account.container_id, account.pod_uid)
    return [
        ChargedFile(path=one.path, cached_bytes=one.cached_bytes)
        for one in files
        if one.charged and (one.charged.container_id if account.container_id else "", one.charged.pod_uid) == identity
    ][: limits.MAX_CHARGED_FILES]


def _is_account(groups: Sequence[MemoryCgroup], one: MemoryCgroup) -> bool:
    """Whether the group is the outermost one of a container, or of a pod."""
    if one.is_removed or one.parent < 0:
        return False
    above = groups[one.parent].identity
    if one.identity.container_id:
        return above.container_id != one.identity.container_id
    return bool(one.identity.pod_uid) and above.pod_uid != one.identity.pod_uid


def _inodes_below(groups: Sequence[MemoryCgroup], chosen: Sequence[int]) -> dict[int, frozenset[int]]:
    members: dict[int, set[int]] = {number: set() for number in chosen}
    for number, one in enumerate(groups):
        above = number
        while above >= 0:
            if above in members:
                members[above].add(one.inode)
            above = groups[above].parent
    return {number: frozenset(inodes) for number, inodes in members.items()}


def _no_limit_pages(page_bytes: int) -> int:
    """PAGE_COUNTER_MAX, include/linux/page_counter.h."""
    return ((1 << 63) - 1) // page_bytes


def _effective_limits(groups: Sequence[MemoryCgroup], counters: Counters) -> tuple[list[int], list[int]]:
    """Return the smallest limit of each group and those above, in pages, and the number of the group that has it."""
    smallest, where = counters.limit_pages.tolist(), list(range(len(groups)))
    for number in range(1, len(groups)):
        above = groups[number].parent
        if smallest[above] < smallest[number]:
            smallest[number], where[number] = smallest[above], where[above]
    return smallest, where


class _Columns:
    """The figures of all groups, each with the groups below it."""

    def __init__(self, groups: Sequence[MemoryCgroup], counters: Counters, page_bytes: int) -> None:
        state, tcp = counters.state_bytes, counters.tcp_pages
        anon, file, shmem = (state.get(f"STATE_{name}") for name in ("ANON", "FILE", "SHMEM"))
        reclaimable, unreclaimable = state.get("STATE_SLAB_RECLAIMABLE"), state.get("STATE_SLAB_UNRECLAIMABLE")
        listed = None if counters.lru_pages is None else subtree(groups, counters.lru_pages) * page_bytes
        events_below = counters.is_unified or counters.oom_kills is None
        self._usage = counters.usage_pages * page_bytes
        self._inactive = None if listed is None else listed[:, _INACTIVE_FILE]
        cached = None if listed is None else listed[:, _INACTIVE_FILE] + listed[:, _ACTIVE_FILE]
        sockets = state.get("STATE_SOCKETS") if counters.is_unified else _scaled(tcp, page_bytes)
        self._optional: dict[str, Counts | None] = {
            "swap_bytes": _scaled(counters.swap_pages, page_bytes),
            "kernel_bytes": state.get("STATE_KERNEL")
            if counters.is_unified
            else _scaled(counters.kernel_pages, page_bytes),
            "anon_bytes": anon,
            "shmem_bytes": shmem,
            "file_bytes": cached if file is None or shmem is None else np.maximum(file - shmem, 0),
            "inactive_file_bytes": self._inactive,
            "active_file_bytes": None if listed is None else listed[:, _ACTIVE_FILE],
            "slab_bytes": None if reclaimable is None or unreclaimable is None else reclaimable + unreclaimable,
            "socket_bytes": sockets,
            "working_set_bytes": None if self._inactive is None else np.maximum(self._usage - self._inactive, 0),
            "reclaimable_bytes": None if cached is None else cached + (0 if reclaimable is None else reclaimable),
        }
        self._hits = counters.limit_hits
        self._kills = counters.oom_kills if events_below else subtree(groups, _present(counters.oom_kills))

    def record(self, number: int, identity: ContainerIdentity) -> ContainerAccount:
        """The account of one group, without its limit."""
        optional = {name: int(values[number]) for name, values in self._optional.items() if values is not None}
        usage_bytes = max(0, int(self._usage[number]))
        return ContainerAccount(
            container_id=identity.container_id,
            pod_uid=identity.pod_uid,
            usage_bytes=usage_bytes,
            limit_hits=0 if self._hits is None else max(0, int(self._hits[number])),
            oom_kills=0 if self._kills is None else max(0, int(self._kills[number])),
            **{
                name: min(value, usage_bytes) if name == "reclaimable_bytes" else value
                for name, value in optional.items()
                if value >= 0
            },
        )


def _present(values: Counts | None) -> Counts:
    return np.empty(0, np.int64) if values is None else values


def _scaled(values: Counts | None, page_bytes: int) -> Counts | None:
    return None if values is None else values * page_bytes


def _with_change(record: ContainerAccount, before: ContainerAccount | None, *, is_new: bool) -> ContainerAccount:
    """Add the changes over the window. A cgroup that is new since then started at nothing."""
    if before is None and not is_new:
        return record
    start = (before.usage_bytes, before.limit_hits, before.oom_kills) if before else (0, 0, 0)
    return record.model_copy(
        update={
            "usage_change_bytes": record.usage_bytes - start[0],
            "window_limit_hits": max(0, record.limit_hits - start[1]),
            "window_oom_kills": max(0, record.oom_kills - start[2]),
        }
    )


def _shown(found: Sequence[Account]) -> list[Account]:
    """Leave out pods without a limit of their own, and those that have the same limit as one of their containers."""
    of_containers = {
        (one.record.pod_uid, one.record.limit_bytes) for one in found if one.record.container_id and one.has_own_limit
    }
    return [
        one
        for one in found
        if one.record.container_id
        or (one.has_own_limit and (one.record.pod_uid, one.record.limit_bytes) not in of_containers)
    ]
