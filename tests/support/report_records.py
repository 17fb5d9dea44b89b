"""Records of a machine, of earlier runs and of memory cgroups, as examples of the text report (docs/report.md)."""

from datetime import UTC, datetime, timedelta

from memdiag_api.containers import OomKill, OomScope, RemovedCgroups, RemovedGroupShare
from memdiag_api.history import HolderSize, RunSummary, SizeByName
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

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOW = datetime(2026, 11, 26, 16, 4, tzinfo=UTC)


def machine() -> Machine:
    """A machine that has a bit of everything."""
    return Machine(
        huge_pages=[
            HugePagePool(page_size_bytes=2 * MIB, pages=1024, free_pages=900, reserved_pages=24, surplus_pages=8)
        ],
        huge_page_sample=HugePageSample(
            huge_pages=1500,
            huge_page_bytes=2 * MIB,
            sampled_pages=256,
            zero_share=0.4,
            zero_bytes=1200 * MIB,
            error_bytes=60 * MIB,
            mostly_zero_share=0.35,
            containers=[HugePageZeros(container_id="c0ffee" * 8, sampled_pages=200, zero_bytes=900 * MIB)],
            processes=[HugePageProcess(pid=4711, comm="java", sampled_pages=180, zero_bytes=800 * MIB)],
        ),
        compressed_devices=[
            CompressedDevice(
                name="zram0", disk_bytes=4 * GIB, stored_bytes=GIB, taken_bytes=300 * MIB, use=SwapUse.SWAP
            )
        ],
        compressed_swap=CompressedSwap(
            stored_bytes=512 * MIB, taken_bytes=160 * MIB, in_pages=12, out_pages=3400, memory_class="Zsmalloc"
        ),
        balloon=BalloonMemory(driver="virtio_balloon", size_bytes=2 * GIB, is_part_of_total=False),
        reserved=ReservedAtBoot(
            ram_bytes=24 * GIB,
            reserved_bytes=726 * MIB,
            memory_map_bytes=384 * MIB,
            kernel_bytes=32 * MIB,
            crash_kernel_bytes=256 * MIB,
        ),
        gpu=GpuMemory(active_bytes=GIB, reclaimable_bytes=128 * MIB),
        free_blocks=FreeBlocks(
            bytes_by_order=[900 * MIB, 80 * MIB, 15 * MIB, 5 * MIB, 0, 0, 0, 0, 0, 0, 0],
            compaction_stalls=31,
            compaction_failures=4,
            reclaim_stalls=0,
        ),
        vmalloc=VmallocCallers(
            callers=[
                VmallocCaller(function="array_map_alloc", size_bytes=215 * MIB, areas=27, change_bytes=8 * MIB),
                VmallocCaller(function="nv_alloc", module="nvidia", size_bytes=64 * MIB, areas=1200, change_bytes=0),
                VmallocCaller(function="small", size_bytes=64 * KIB, areas=1, change_bytes=0),
            ],
            callers_total=45,
            read_bytes=290 * MIB,
        ),
        allocation_sites=AllocationSites(
            sites=[
                AllocationSite(
                    place="mm/filemap.c:1960",
                    function="__filemap_get_folio",
                    size_bytes=3 * GIB,
                    calls=700_000,
                    change_bytes=-MIB,
                    memory_class="FileCache",
                ),
                AllocationSite(
                    place="drivers/net/ring.c:88",
                    function="ring_fill",
                    module="vendor_net",
                    size_bytes=700 * MIB,
                    calls=179_200,
                ),
            ],
            sites_total=2100,
        ),
        page_owner=[
            PageOwnerStack(frames=["__alloc_pages", "ring_fill", "ring_poll", "net_rx_action"], size_bytes=700 * MIB)
        ],
        not_read=["zram: [Errno 13] Permission denied"],
    )


def run(hours_ago: float, alloc_page_mib: int, *, cache_mib: int = 0, holder_mib: int = 0, pid: int = 7) -> RunSummary:
    """A run so long ago. Its lists of caches and holders are short: what they lack was empty."""
    return RunSummary(
        run_id=f"run-{hours_ago}",
        end_time=NOW - timedelta(hours=hours_ago),
        boot_id="b",
        mem_total_bytes=24 * GIB,
        classes=[
            SizeByName(name="AnonPages", size_bytes=2 * GIB),
            SizeByName(name="SUnreclaim", size_bytes=(80 + cache_mib) * MIB),
            SizeByName(name="AllocPage", size_bytes=alloc_page_mib * MIB),
            SizeByName(name="MemFree", size_bytes=20 * GIB - (alloc_page_mib + cache_mib) * MIB),
        ],
        alloc_page_bytes=alloc_page_mib * MIB,
        unexplained_bytes=(alloc_page_mib - 100 - holder_mib) * MIB,
        slab_caches=[
            SizeByName(name="kmalloc-64", size_bytes=(10 + cache_mib) * MIB),
            SizeByName(name="task_struct", size_bytes=8 * MIB),
        ],
        holders=[
            HolderSize(kind="Socket", owner=f"nginx[{pid}] in c0ffeec0ffee", size_bytes=(10 + holder_mib) * MIB),
            HolderSize(kind="Pipe", owner="bash[1]", size_bytes=64 * KIB),
        ],
    )


def runs() -> list[RunSummary]:
    """Runs of two days, the latest first: AllocPage, a slab cache and the sockets of nginx grow."""
    return [
        run(0, 2648, cache_mib=210, holder_mib=40, pid=9),
        run(12, 2040, cache_mib=160, holder_mib=30, pid=9),
        run(24, 1424, cache_mib=100, holder_mib=20),
        run(48, 200),
    ]


def removed_cgroups() -> RemovedCgroups:
    """Removed cgroups of pods that were created and deleted."""
    return RemovedCgroups(
        live=84,
        removed=1600,
        removed_change=12,
        percpu_bytes=6 * MIB,
        struct_bytes=11 * MIB,
        file_bytes=500 * MIB,
        anon_bytes=48 * MIB,
        shares=[
            RemovedGroupShare(path="/kubepods/burstable", groups=1520, charged_bytes=474 * MIB),
            RemovedGroupShare(pod_uid="7b035816-50bd-46b7-9262-f7351f13e0aa", groups=40, charged_bytes=60 * MIB),
            RemovedGroupShare(container_id="c0ffee" * 8, groups=3, charged_bytes=14 * MIB),
        ],
    )


def oom_kills() -> list[OomKill]:
    """A kill at the limit of a container, and one for which the node lacked memory."""
    return [
        OomKill(
            seconds_ago=744,
            scope=OomScope.CONTAINER,
            container_id="c0ffee" * 8,
            limit_path="/kubepods/pod1/c0ffee",
            comm="java",
            pid=4711,
            anon_bytes=700 * MIB,
            file_bytes=6 * MIB,
            shmem_bytes=0,
            limit_bytes=768 * MIB,
            limit_hits=1168,
            classes_bytes={"total_rss": 704 * MIB, "total_cache": 60 * MIB, "total_swap": 0},
        ),
        OomKill(
            seconds_ago=7300,
            scope=OomScope.NODE,
            comm="postgres",
            pid=88,
            anon_bytes=3 * GIB,
            file_bytes=0,
            shmem_bytes=GIB,
            classes_bytes={"active_anon": 20 * GIB, "slab_unreclaimable": 2 * GIB},
        ),
    ]
