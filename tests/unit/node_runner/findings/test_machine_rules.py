"""The rules about the machine's memory: what is a finding, and what is not."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.machine import (
    AllocationSite,
    AllocationSites,
    BalloonMemory,
    CompressedDevice,
    CompressedSwap,
    FreeBlocks,
    GpuMemory,
    HugePagePool,
    HugePageProcess,
    HugePageSample,
    HugePageZeros,
    Machine,
    PageOwnerStack,
    ReservedAtBoot,
    SwapUse,
    VmallocCaller,
    VmallocCallers,
)
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassShare, MemoryOwner, OwnerKind
from memdiag_node.findings.allocation_sites import allocation_sites, page_owner_reasons, sites_for
from memdiag_node.findings.balloon import balloon, reserved_memory
from memdiag_node.findings.compressed_memory import compressed_memory, gpu_memory
from memdiag_node.findings.draft import Draft, Tier
from memdiag_node.findings.fragmentation import fragmentation
from memdiag_node.findings.huge_page_waste import huge_page_waste
from memdiag_node.findings.huge_pages import unused_huge_pages
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import GIB, MIB
from memdiag_node.findings.vmalloc import is_bpf, vmalloc_callers, vmalloc_owners
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.machine_records import LARGE_BYTES, NOTABLE_BYTES, situation_of

Rule = Callable[[Situation], Iterable[Draft]]
RULES: tuple[Rule, ...] = (
    unused_huge_pages,
    balloon,
    reserved_memory,
    compressed_memory,
    gpu_memory,
    vmalloc_callers,
    allocation_sites,
    fragmentation,
    huge_page_waste,
)


def only(drafts: Iterable[Draft]) -> Draft:
    (draft,) = drafts
    return draft


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("machine", [None, Machine()])
def test_without_anything_there_is_no_finding(rule: Rule, machine: Machine | None) -> None:
    assert list(rule(situation_of(machine))) == []


def pool(pages: int, free: int, *, reserved: int = 0, surplus: int = 0, node: int | None = None) -> HugePagePool:
    return HugePagePool(
        page_size_bytes=2 * MIB,
        numa_node=node,
        pages=pages,
        free_pages=free,
        reserved_pages=reserved,
        surplus_pages=surplus,
    )


@pytest.mark.parametrize(
    ("found", "unused", "keep"),
    [
        (pool(600, 600), 600, 0),
        (pool(600, 500, reserved=100), 400, 200),
        (pool(600, 100, reserved=80), None, None),  # 20 unused pages are 40 MiB
        (pool(600, 31), None, None),
        (pool(600, 32), 32, 568),
        (pool(100, 60, surplus=40), None, None),
        (pool(100, 90, surplus=40), 50, 10),
        (pool(600, 0), None, None),
    ],
)
def test_unused_huge_pages(found: HugePagePool, unused: int | None, keep: int | None) -> None:
    drafts = list(unused_huge_pages(situation_of(Machine(huge_pages=[found]))))
    if unused is None:
        assert drafts == []
        return
    draft = only(drafts)
    assert (draft.kind, draft.memory_class) == (FindingKind.UNUSED_HUGE_PAGES, ClassName.HUGETLB)
    assert (draft.leak, draft.tier) == (LeakAnswer.NO, Tier.NOTABLE)
    assert draft.size_bytes == unused * 2 * MIB
    assert draft.freed_by
    assert draft.freed_by.action == f"Write {keep} to /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages."
    assert draft.freed_by.size_bytes == draft.size_bytes


def test_pools_of_numa_nodes_and_users_are_reasons() -> None:
    machine = Machine(huge_pages=[pool(600, 500), pool(300, 300, node=0), pool(300, 200, node=1)])
    user = ClassShare(owner=MemoryOwner(kind=OwnerKind.PROCESS, name="db[7]"), size_bytes=200 * MIB)
    reasons = " ".join(only(unused_huge_pages(situation_of(machine), [user])).reasons)
    assert "300 on node 0, 200 on node 1" in reasons
    assert "db[7] 200 MiB" in reasons


@pytest.mark.parametrize(
    ("size_bytes", "is_part", "claims"),
    [
        (NOTABLE_BYTES - 1, True, None),
        (GIB, True, {ClassName.BALLOON: GIB}),
        (GIB, False, {}),
    ],
)
def test_a_balloon(size_bytes: int, is_part: bool, claims: dict[str, int] | None) -> None:
    machine = Machine(balloon=BalloonMemory(driver="vmw_balloon", size_bytes=size_bytes, is_part_of_total=is_part))
    drafts = list(balloon(situation_of(machine)))
    assert [one.claimed_bytes for one in drafts] == ([] if claims is None else [claims])
    if drafts:
        assert drafts[0].sentence == "The hypervisor took 1.00 GiB back through vmw_balloon."
        assert (drafts[0].leak, drafts[0].is_notable) == (LeakAnswer.NO, True)


@pytest.mark.parametrize(
    ("reserved_bytes", "kernel_bytes", "tier"),
    [
        (300 * MIB, 40 * MIB, None),  # 256 MiB of memory map
        (300 * MIB, None, None),
        (400 * MIB, 40 * MIB, Tier.PLAIN),
        (2 * GIB, 40 * MIB, Tier.NOTABLE),
        (2 * GIB, None, Tier.NOTABLE),
    ],
)
def test_reserved_memory(reserved_bytes: int, kernel_bytes: int | None, tier: Tier | None) -> None:
    reserved = ReservedAtBoot(
        ram_bytes=16 * GIB,
        reserved_bytes=reserved_bytes,
        memory_map_bytes=256 * MIB,
        kernel_bytes=kernel_bytes,
        crash_kernel_bytes=256 * MIB,
    )
    drafts = list(reserved_memory(situation_of(Machine(reserved=reserved))))
    assert [one.tier for one in drafts] == ([] if tier is None else [tier])
    assert all(one.claimed_bytes == {} and "256 MiB are kept for a crash kernel" in one.reasons for one in drafts)


@pytest.mark.parametrize(
    ("use", "action"),
    [
        (SwapUse.SWAP, "End the processes that are swapped out to zram0."),
        (SwapUse.FILE_SYSTEM, "Unmount it, then write 1 to /sys/block/zram0/reset"),
        (SwapUse.UNKNOWN, "If nothing uses it, write 1 to /sys/block/zram0/reset"),
    ],
)
def test_a_compressed_device(use: SwapUse, action: str) -> None:
    device = CompressedDevice(name="zram0", disk_bytes=4 * GIB, stored_bytes=900 * MIB, taken_bytes=300 * MIB, use=use)
    small = device.model_copy(update={"name": "zram1", "taken_bytes": 63 * MIB})
    draft = only(compressed_memory(situation_of(Machine(compressed_devices=[device, small]))))
    assert (draft.kind, draft.claimed_bytes) == (FindingKind.LARGE_HOLDER, {ClassName.ZSMALLOC: 300 * MIB})
    assert draft.owner == MemoryOwner(kind=OwnerKind.DEVICE, name="zram0")
    assert "stores 900 MiB in 300 MiB of memory (ratio 3.0)" in draft.sentence
    assert draft.freed_by
    assert draft.freed_by.action.startswith(action)
    assert draft.freed_by.size_bytes == 300 * MIB


def test_zswap() -> None:
    zswap = CompressedSwap(
        stored_bytes=400 * MIB, taken_bytes=100 * MIB, in_pages=3, out_pages=5, memory_class=ClassName.ALLOC_PAGE
    )
    draft = only(compressed_memory(situation_of(Machine(compressed_swap=zswap))))
    assert draft.claimed_bytes == {ClassName.ALLOC_PAGE: 100 * MIB}
    assert "400 MiB of swapped out memory in 100 MiB (ratio 4.0)" in draft.sentence


def test_gpu_memory_claims_at_most_allocpage() -> None:
    machine = Machine(gpu=GpuMemory(active_bytes=GIB, reclaimable_bytes=3 * GIB))
    active, pools = gpu_memory(situation_of(machine))
    assert (active.claimed_bytes, active.reclaimable) == ({ClassName.ALLOC_PAGE: GIB}, False)
    assert (pools.claimed_bytes, pools.reclaimable) == ({ClassName.ALLOC_PAGE: GIB}, True)


def caller(function: str, size_bytes: int, module: str = "") -> VmallocCaller:
    return VmallocCaller(function=function, module=module, size_bytes=size_bytes, areas=3, change_bytes=10 * MIB)


def vmalloc_of(*callers: VmallocCaller) -> Machine:
    total = sum(one.size_bytes for one in callers)
    return Machine(vmalloc=VmallocCallers(callers=list(callers), callers_total=len(callers), read_bytes=total))


def bpf_map(size_bytes: int) -> Holder:
    return Holder(kind=HolderKind.BPF_MAP, memory_class=ClassName.VMALLOC, pinned_bytes=size_bytes)


@pytest.mark.parametrize(
    ("found", "leak"),
    [
        (caller("leaky_open", NOTABLE_BYTES - 1, "leaky"), None),
        (caller("leaky_open", NOTABLE_BYTES, "leaky"), LeakAnswer.NO),
        (caller("leaky_open", LARGE_BYTES, "leaky"), LeakAnswer.UNKNOWN),
        (caller("alloc_large_system_hash", LARGE_BYTES), LeakAnswer.NO),
        (caller("", LARGE_BYTES), LeakAnswer.UNKNOWN),
    ],
)
def test_vmalloc_by_caller(found: VmallocCaller, leak: LeakAnswer | None) -> None:
    drafts = list(vmalloc_callers(situation_of(vmalloc_of(found))))
    assert [one.leak for one in drafts] == ([] if leak is None else [leak])
    for draft in drafts:
        assert draft.claimed_bytes == {ClassName.VMALLOC: found.size_bytes}
        assert draft.trend
        assert draft.trend.bytes_per_second == MIB


def test_a_module_owns_what_its_functions_allocated() -> None:
    draft = only(vmalloc_callers(situation_of(vmalloc_of(caller("leaky_open", GIB, "leaky")))))
    assert draft.sentence == "1.00 GiB of vmalloc were allocated by leaky_open [leaky]."
    assert draft.owner == MemoryOwner(kind=OwnerKind.MODULE, name="leaky_open [leaky]")


@pytest.mark.parametrize(
    ("held_bytes", "rest_bytes"), [(500 * MIB, None), (440 * MIB, None), (100 * MIB, 400 * MIB), (GIB, None)]
)
def test_memory_of_bpf_counts_only_beyond_known_maps_and_programs(held_bytes: int, rest_bytes: int | None) -> None:
    machine = vmalloc_of(caller("array_map_alloc", 300 * MIB), caller("bpf_prog_pack_alloc", 200 * MIB))
    drafts = list(vmalloc_callers(situation_of(machine, bpf_map(held_bytes))))
    assert [(one.size_bytes, one.leak) for one in drafts] == (
        [] if rest_bytes is None else [(rest_bytes, LeakAnswer.UNKNOWN)]
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("array_map_alloc", True),
        ("htab_map_alloc", True),
        ("bpf_prog_alloc_no_stats", True),
        ("__bpf_map_area_alloc", True),
        ("sock_hash_alloc", True),
        ("alloc_pg_vec", False),
        ("my_bpf_thing", False),
        ("n_tty_open", False),
    ],
)
def test_functions_of_bpf(function: str, expected: bool) -> None:
    assert is_bpf(function) is expected


def test_owners_of_vmalloc_are_callers_and_unknown_ones_explain_nothing() -> None:
    machine = vmalloc_of(caller("leaky_open", 300 * MIB, "leaky"), caller("", 200 * MIB))
    assert machine.vmalloc
    owners = vmalloc_owners(machine.vmalloc, 600 * MIB)
    assert (owners.size_bytes, owners.explained_bytes) == (600 * MIB, 300 * MIB)
    assert [(one.owner.name, one.change_bytes) for one in owners.owners] == [("leaky_open [leaky]", 10 * MIB)]
    assert vmalloc_owners(machine.vmalloc, 100 * MIB).explained_bytes == 100 * MIB


def test_maps_of_this_run_are_one_owner_of_vmalloc_and_in_no_finding() -> None:
    functions = {"array_map_alloc": 300, "leaky_open": 60, "htab_map_alloc": 30}
    machine = vmalloc_of(*(caller(name, mib * MIB) for name, mib in functions.items()))
    assert machine.vmalloc
    owners = vmalloc_owners(machine.vmalloc, 600 * MIB, 310 * MIB)
    assert owners.explained_bytes == 390 * MIB
    shown = [(one.owner.name, one.size_bytes // MIB) for one in owners.owners]
    assert shown == [("this run of memdiag-node", 310), ("leaky_open", 60), ("htab_map_alloc", 20)]
    assert owners.owners_total == len(owners.owners)
    own = Holding(bpf_map(310 * MIB), np.empty(0, PINNED_DTYPE), is_own=True)
    situation = situation_of(machine)
    assert len(list(vmalloc_callers(situation))) == 1
    assert list(vmalloc_callers(replace(situation, measured=replace(situation.measured, own_holdings=[own])))) == []


def blocks(small_bytes: int, large_bytes: int, *, stalls: int | None = 4) -> Machine:
    return Machine(
        free_blocks=FreeBlocks(
            bytes_by_order=[small_bytes, 0, 0, large_bytes],
            compaction_stalls=stalls,
            compaction_failures=None if stalls is None else 0,
            reclaim_stalls=None if stalls is None else 0,
        )
    )


@pytest.mark.parametrize(
    ("machine", "is_found"),
    [
        (blocks(2 * GIB, 10 * MIB), True),
        (blocks(2 * GIB, 10 * MIB, stalls=0), False),
        (blocks(2 * GIB, 10 * MIB, stalls=None), False),
        (blocks(2 * GIB, 100 * MIB), False),  # 5 % in large blocks
        (blocks(600 * MIB, 0), False),  # little is free
        (blocks(700 * MIB, 0), True),
    ],
)
def test_fragmentation_only_where_it_matters(machine: Machine, is_found: bool) -> None:
    drafts = list(fragmentation(situation_of(machine)))
    assert bool(drafts) is is_found
    for draft in drafts:
        assert (draft.kind, draft.claimed_bytes, draft.leak) == (FindingKind.FRAGMENTATION, {}, LeakAnswer.NO)
        assert "in the window there were 4 waits for compaction" in draft.reasons


def sample(
    zero_bytes: int, *containers: HugePageZeros, error_bytes: int = MIB, processes: Sequence[HugePageProcess] = ()
) -> Machine:
    return Machine(
        huge_page_sample=HugePageSample(
            huge_pages=1000,
            huge_page_bytes=2 * MIB,
            sampled_pages=256,
            zero_share=zero_bytes / (2000 * MIB),
            zero_bytes=zero_bytes,
            error_bytes=error_bytes,
            mostly_zero_share=0.4,
            containers=list(containers),
            processes=list(processes),
        )
    )


def zeros(container: str, zero_bytes: int) -> HugePageZeros:
    return HugePageZeros(container_id=container, pod_uid="", sampled_pages=9, zero_bytes=zero_bytes)


def of_process(zero_bytes: int) -> HugePageProcess:
    return HugePageProcess(pid=12, comm="java", container_id="c" * 64, sampled_pages=9, zero_bytes=zero_bytes)


@pytest.mark.parametrize(
    ("machine", "owner"),
    [
        (sample(NOTABLE_BYTES - 1), None),
        (sample(800 * MIB), OwnerKind.NODE),
        (sample(800 * MIB, zeros("c" * 64, 700 * MIB)), OwnerKind.CONTAINER),
        (sample(800 * MIB, zeros("c" * 64, 300 * MIB)), OwnerKind.NODE),
        (sample(800 * MIB, zeros("", 700 * MIB)), OwnerKind.NODE),
        (sample(800 * MIB, zeros("c" * 64, 700 * MIB), processes=[of_process(600 * MIB)]), OwnerKind.PROCESS),
        (sample(800 * MIB, zeros("c" * 64, 700 * MIB), processes=[of_process(300 * MIB)]), OwnerKind.CONTAINER),
    ],
)
def test_huge_pages_that_are_mostly_zero(machine: Machine, owner: OwnerKind | None) -> None:
    drafts = list(huge_page_waste(situation_of(machine)))
    assert [one.owner.kind for one in drafts if one.owner] == ([] if owner is None else [owner])
    assert all(one.claimed_bytes == {} and one.freed_by is None for one in drafts)
    if owner is OwnerKind.PROCESS:
        assert drafts[0].owner is not None
        assert (drafts[0].owner.pid, drafts[0].owner.name) == (12, "java[12]")
        assert "about 600 MiB are of java[12]" in drafts[0].reasons


def sites() -> Machine:
    rows = [
        ("drivers/net/leaky/rx.c:88", "leaky_rx_alloc", "leaky", GIB, "", 20 * MIB),
        ("mm/slub.c:3062", "alloc_slab_page", "", 500 * MIB, ClassName.SLAB, 0),
        ("mm/filemap.c:1026", "filemap_alloc", "", 400 * MIB, ClassName.FILE_CACHE, 0),
        ("fs/inode.c:12", "alloc_inode", "", 300 * MIB, "", 30 * MIB),
    ]
    listed = [
        AllocationSite(
            place=place,
            function=function,
            module=module,
            size_bytes=size,
            calls=7,
            change_bytes=change,
            memory_class=name,
        )
        for place, function, module, size, name, change in rows
    ]
    return Machine(allocation_sites=AllocationSites(sites=listed, sites_total=4))


def test_the_largest_allocation_site_is_named_and_claims_nothing() -> None:
    draft = only(allocation_sites(situation_of(sites())))
    assert "1.00 GiB were allocated at leaky_rx_alloc [leaky] (drivers/net/leaky/rx.c:88)" in draft.sentence
    assert (draft.claimed_bytes, draft.leak, draft.tier) == ({}, LeakAnswer.NO, Tier.NOTABLE)


def test_sites_are_reasons_of_findings_about_a_class() -> None:
    assert [one.split()[2] for one in sites_for(sites(), ClassName.SUNRECLAIM)] == ["leaky_rx_alloc", "alloc_inode"]
    assert [one.split()[2] for one in sites_for(sites(), growing=True, count=1)] == ["alloc_inode"]
    assert sites_for(Machine()) == sites_for(None) == []


def test_stacks_of_page_owner_are_reasons() -> None:
    machine = Machine(page_owner=[PageOwnerStack(frames=["a+0x1/0x2", "b+0x1/0x2"], size_bytes=GIB)])
    (reason,) = page_owner_reasons(machine)
    assert reason == "1.00 GiB of pages were allocated since boot through a+0x1/0x2 < b+0x1/0x2"
