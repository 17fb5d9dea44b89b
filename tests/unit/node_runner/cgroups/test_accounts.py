"""The account of each container, and removed cgroups, from counters made by hand."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from memdiag_api.census.files import CachedFile, FileCensus, FileCharge, FileKind
from memdiag_api.containers import ContainerAccount
from memdiag_node.cgroups.accounts import Account, account_records, accounts, by_inode, with_frames
from memdiag_node.cgroups.counters import Counters, Counts, state_agrees, subtree
from memdiag_node.cgroups.removed import removed_cgroups, removed_count
from memdiag_node.cgroups.tree import MemoryCgroup
from memdiag_node.procfs.cgroup import parse_cgroup

PAGE = 4096
NO_LIMIT = ((1 << 63) - 1) // PAGE
POD, OTHER = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94", "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b95"
FIRST, SECOND, THIRD = "a" * 64, "b" * 64, "c" * 64


def group(path: str, parent: int, inode: int, *, is_removed: bool = False) -> MemoryCgroup:
    identity = parse_cgroup(b"0::" + path.encode() if path else b"0::/")
    return MemoryCgroup(inode << 12, parent, inode, path.encode(), identity, is_removed=is_removed)


GROUPS = [
    group("", -1, 1),
    group("/kubepods", 0, 2),
    group(f"/kubepods/pod{POD}", 1, 3),
    group(f"/kubepods/pod{POD}/{FIRST}", 2, 4),
    group(f"/kubepods/pod{POD}/{SECOND}", 2, 5),
    group(f"/kubepods/pod{POD}/{FIRST}/inner", 3, 6),
    group(f"/kubepods/pod{OTHER}", 1, 7),
    group(f"/kubepods/pod{OTHER}/{THIRD}", 6, 8, is_removed=True),
]
ROOT, KUBEPODS, POD_AT, FIRST_AT, SECOND_AT, INNER_AT, OTHER_AT, REMOVED_AT = range(len(GROUPS))


def column(**values: int) -> Counts:
    """A counter with these values, by the names above in lower case."""
    names = ("root", "kubepods", "pod", "first", "second", "inner", "other", "removed")
    return np.array([values.get(name, values.get("rest", 0)) for name in names], np.int64)


def lists(**values: Sequence[int]) -> Counts:
    names = ("root", "kubepods", "pod", "first", "second", "inner", "other", "removed")
    return np.array([values.get(name, (0, 0, 0, 0, 0)) for name in names], np.int64)


PLAIN = Counters(is_unified=True, usage_pages=column(first=100, second=50, pod=150), limit_pages=column(rest=NO_LIMIT))


def records(counters: Counters, earlier: dict[int, ContainerAccount] | None = None) -> dict[str, ContainerAccount]:
    found = accounts(GROUPS, counters, earlier, page_bytes=PAGE)
    return {one.container_id or one.pod_uid: one for one in account_records(found)}


def test_there_is_one_account_for_each_container_that_exists() -> None:
    found = accounts(GROUPS, PLAIN, page_bytes=PAGE)
    assert [one.record.container_id for one in found] == [FIRST, SECOND]
    assert [one.inode for one in found] == [4, 5]
    assert found[0].inodes == {4, 6}


def file(path: str, size_bytes: int, charged: FileCharge | None) -> CachedFile:
    return CachedFile(
        kind=FileKind.FILE, inode=1, path=path, cached_bytes=size_bytes, size_bytes=size_bytes, charged=charged
    )


def test_the_largest_files_that_are_charged_to_it_are_named() -> None:
    of_first, of_second = (FileCharge(container_id=one, pod_uid=POD, share=1) for one in (FIRST, SECOND))
    files = [
        file("/largest", 90, None),
        *(file(f"/first{size_bytes}", size_bytes, of_first) for size_bytes in (80, 70)),
        file("", 60, of_first),
        file("/second", 50, of_second),
        *(file(f"/first{size_bytes}", size_bytes, of_first) for size_bytes in (40, 30)),
    ]
    sums = {"cached_bytes": 0, "shmem_bytes": 0, "block_device_bytes": 0, "deleted_bytes": 0}
    census = FileCensus(inodes=9, files=files, **sums)
    limited = replace(PLAIN, limit_pages=column(rest=NO_LIMIT, pod=300))
    of_pod, first, second = account_records(accounts(GROUPS, limited, None, page_bytes=PAGE), census)
    assert [one.path for one in first.files] == ["/first80", "/first70", "/first40"]
    assert [(one.path, one.cached_bytes) for one in second.files] == [("/second", 50)]
    assert [one.path for one in of_pod.files] == ["/first80", "/first70", "/second"]


def test_what_the_kernel_does_not_have_is_null() -> None:
    account = records(PLAIN)[FIRST]
    known = {"container_id", "pod_uid", "usage_bytes", "limit_hits", "oom_kills"}
    assert {name for name, value in account if value is not None and value != []} == known


@pytest.mark.parametrize(
    ("limits", "of_first", "shown"),
    [
        ({}, None, [FIRST, SECOND]),
        ({"first": 200}, 200, [FIRST, SECOND]),
        ({"pod": 300}, 300, [POD, FIRST, SECOND]),
        ({"pod": 300, "first": 200}, 200, [POD, FIRST, SECOND]),
        ({"pod": 300, "first": 400}, 300, [POD, FIRST, SECOND]),
        ({"pod": 300, "first": 300}, 300, [FIRST, SECOND]),
        ({"kubepods": 1000}, 1000, [FIRST, SECOND]),
    ],
)
def test_the_smallest_limit_on_the_way_to_the_root_counts(
    limits: dict[str, int], of_first: int | None, shown: list[str]
) -> None:
    found = records(replace(PLAIN, limit_pages=column(rest=NO_LIMIT, **limits)))
    assert found[FIRST].limit_bytes == (None if of_first is None else of_first * PAGE)
    assert list(found) == shown


def test_lru_lists_of_groups_below_are_part_of_the_account() -> None:
    counters = replace(PLAIN, lru_pages=lists(first=(1, 2, 10, 20, 0), inner=(0, 0, 5, 5, 0), second=(0, 0, 60, 0, 0)))
    first, second = records(counters)[FIRST], records(counters)[SECOND]
    assert first.inactive_file_bytes == 15 * PAGE
    assert first.active_file_bytes == 25 * PAGE
    assert first.file_bytes == 40 * PAGE
    assert first.working_set_bytes == 85 * PAGE
    assert first.reclaimable_bytes == 40 * PAGE
    assert second.working_set_bytes == 0, "read at another moment, more may be listed than is charged"
    assert second.reclaimable_bytes == 50 * PAGE


def test_counters_by_use() -> None:
    state = {
        "STATE_ANON": column(first=10 * PAGE),
        "STATE_FILE": column(first=50 * PAGE),
        "STATE_SHMEM": column(first=20 * PAGE),
        "STATE_SLAB_RECLAIMABLE": column(first=7),
        "STATE_SLAB_UNRECLAIMABLE": column(first=5),
        "STATE_SOCKETS": column(first=3 * PAGE),
        "STATE_KERNEL": column(first=4 * PAGE),
    }
    account = records(replace(PLAIN, state_bytes=state, lru_pages=lists(first=(0, 0, 30, 0, 0))))[FIRST]
    assert (account.anon_bytes, account.file_bytes, account.shmem_bytes) == (10 * PAGE, 30 * PAGE, 20 * PAGE)
    assert (account.slab_bytes, account.socket_bytes, account.kernel_bytes) == (12, 3 * PAGE, 4 * PAGE)
    assert account.reclaimable_bytes == 30 * PAGE + 7


def test_version_1_has_counters_of_its_own() -> None:
    counters = replace(
        PLAIN,
        is_unified=False,
        kernel_pages=column(first=9),
        tcp_pages=column(first=8, rest=-1),
        oom_kills=column(first=1, inner=2),
        state_bytes={"STATE_KERNEL": column(first=1), "STATE_SOCKETS": column(first=1)},
    )
    first, second = records(counters)[FIRST], records(counters)[SECOND]
    assert (first.kernel_bytes, first.socket_bytes) == (9 * PAGE, 8 * PAGE)
    assert second.socket_bytes is None
    assert first.oom_kills == 3, "each group counts its own"
    assert records(replace(counters, is_unified=True))[FIRST].oom_kills == 1


def test_changes_over_the_window() -> None:
    before = accounts(GROUPS[:FIRST_AT] + GROUPS[SECOND_AT:INNER_AT], _without(PLAIN, 4), page_bytes=PAGE)
    after = replace(
        PLAIN,
        usage_pages=column(first=110, second=45),
        limit_hits=column(first=6, second=3),
        oom_kills=column(second=1),
    )
    found = records(after, by_inode(before))
    first, second = found[FIRST], found[SECOND]
    assert (first.usage_change_bytes, first.window_limit_hits) == (110 * PAGE, 6), "it is new"
    assert (second.usage_change_bytes, second.window_limit_hits, second.window_oom_kills) == (-5 * PAGE, 3, 1)
    assert records(after)[FIRST].usage_change_bytes is None


def _without(counters: Counters, count: int) -> Counters:
    """The counters of root, kubepods, pod and second."""
    chosen = [ROOT, KUBEPODS, POD_AT, SECOND_AT]
    assert len(chosen) == count
    return replace(counters, usage_pages=counters.usage_pages[chosen], limit_pages=counters.limit_pages[chosen])


@dataclass(frozen=True)
class Frames:
    anonymous: int
    file: int
    shmem: int


def test_a_census_of_frames_replaces_the_kernels_figures() -> None:
    found: list[Account] = accounts(GROUPS, PLAIN, page_bytes=PAGE)
    filled = with_frames(found, {4: Frames(1, 2, 3), 6: Frames(10, 20, 30), 3: Frames(9, 9, 9)}, page_bytes=PAGE)
    first, second = (one.record for one in filled)
    assert (first.anon_bytes, first.file_bytes, first.shmem_bytes) == (11 * PAGE, 22 * PAGE, 33 * PAGE)
    assert second.anon_bytes is None


def test_sums_over_groups_below() -> None:
    assert subtree(GROUPS, column(first=1, inner=2, other=4, removed=8)).tolist() == [15, 15, 3, 3, 0, 2, 12, 8]


@pytest.mark.parametrize(
    ("anon", "file", "shmem", "agrees"),
    [(60, 40, 10, True), (70, 45, 0, True), (60, 5, 0, False), (60, 100, 0, False), (60, 40, 41, False)],
)
def test_counters_in_a_wrong_place_are_noticed(anon: int, file: int, shmem: int, *, agrees: bool) -> None:
    state = {
        "STATE_ANON": column(kubepods=anon * PAGE),
        "STATE_FILE": column(kubepods=file * PAGE),
        "STATE_SHMEM": column(kubepods=shmem * PAGE),
    }
    listed = lists(first=(30, 30, 10, 10, 0), second=(10, 0, 10, 0, 0))
    assert state_agrees(GROUPS, listed, state, page_bytes=PAGE) is agrees
    assert not state_agrees(GROUPS, None, state, page_bytes=PAGE)


SIZES = {"GROUP_BYTES": 6000, "GROUP_NODE_BYTES": 1000, "GROUP_CPU_BYTES": 1400, "GROUP_CPU_NODE_BYTES": 500}


def test_removed_cgroups_with_what_is_charged_to_them() -> None:
    counters = replace(PLAIN, lru_pages=lists(removed=(1, 2, 10, 20, 4)), swap_pages=column(removed=6, first=100))
    found = removed_cgroups(
        GROUPS, counters, SIZES, cpus=4, nodes=2, page_bytes=PAGE, removed_before=0, charged_slab=(3, 999)
    )
    assert found is not None
    assert (found.live, found.removed, found.removed_change) == (7, 1, 1)
    assert found.percpu_bytes == 4 * (1400 + 2 * 500)
    assert found.struct_bytes == 6000 + 2 * 1000
    assert (found.file_bytes, found.anon_bytes, found.swap_bytes) == (30 * PAGE, 7 * PAGE, 6 * PAGE)
    assert (found.charged_slab_groups, found.charged_slab_bytes) == (3, 999)
    assert found.pinned_bytes == 9600 + 8000 + 7 * PAGE
    assert found.held_bytes == found.pinned_bytes + 30 * PAGE
    (share,) = found.shares
    assert (share.container_id, share.pod_uid, share.path) == (THIRD, OTHER, f"/kubepods/pod{OTHER}")
    assert (share.groups, share.charged_bytes) == (1, 37 * PAGE)
    assert removed_count(GROUPS) == 1


def test_without_counters_removed_cgroups_are_still_counted() -> None:
    found = removed_cgroups(GROUPS, None, {}, cpus=1, nodes=1, page_bytes=PAGE)
    assert found is not None
    assert (found.removed, found.file_bytes, found.swap_bytes, found.removed_change) == (1, None, None, None)
    assert removed_cgroups([], None, {}, cpus=1, nodes=1, page_bytes=PAGE) is None
    assert removed_count([]) is None
