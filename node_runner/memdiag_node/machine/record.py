"""Two readings of the machine's memory as a record (pure)."""

from collections.abc import Iterator, Mapping, Sequence

from memdiag_api import limits
from memdiag_api.machine import (
    AllocationSite,
    AllocationSites,
    BalloonMemory,
    CompressedDevice,
    CompressedSwap,
    FreeBlocks,
    GpuMemory,
    HugePagePool,
    HugePageSample,
    Machine,
    PageOwnerStack,
    ReservedAtBoot,
    SwapUse,
    VmallocCaller,
    VmallocCallers,
)
from memdiag_api.memory_classes import ClassName
from memdiag_node.machine.reading import MachineReading
from memdiag_node.machine.site_classes import site_class
from memdiag_node.procfs.allocinfo import Site
from memdiag_node.procfs.buddyinfo import free_pages_by_order

STRUCT_PAGE_BYTES = 64
"""Size of the kernel's description of a page, unless a kernel is built with debugging options."""
_NAME = 253


def machine_record(
    last: MachineReading,
    first: MachineReading | None = None,
    *,
    page_bytes: int,
    mem_total_bytes: int,
    sample: HugePageSample | None = None,
) -> Machine:
    """Return the record. `first` is the reading at the start of the window."""
    not_read = list(dict.fromkeys([*(first.not_read if first else ()), *last.not_read]))
    pools = [one for one in last.huge_pages or () if one.pages]
    several_nodes = len({one.numa_node for one in pools if one.numa_node is not None}) > 1
    return Machine(
        huge_pages=[
            HugePagePool(
                page_size_bytes=one.page_bytes,
                numa_node=one.numa_node,
                pages=one.pages,
                free_pages=one.free,
                reserved_pages=one.reserved,
                surplus_pages=one.surplus,
            )
            for one in pools
            if one.numa_node is None or several_nodes
        ][: limits.MAX_HUGE_PAGE_POOLS],
        compressed_devices=_devices(last),
        compressed_swap=_zswap(last, first),
        balloon=_balloon(last, page_bytes),
        reserved=_reserved(last, page_bytes=page_bytes, mem_total_bytes=mem_total_bytes),
        vmalloc=_vmalloc(last, first, page_bytes),
        allocation_sites=_sites(last, first),
        page_owner=_page_owner(last, page_bytes),
        gpu=_gpu(last),
        free_blocks=_free_blocks(last, first, page_bytes),
        huge_page_sample=sample,
        not_read=[one[: limits.MAX_SENTENCE] for one in not_read][: limits.MAX_NOT_SEEN],
    )


def _devices(last: MachineReading) -> list[CompressedDevice]:
    swaps = {one.path.rsplit("/", 1)[-1] for one in last.swaps or ()}

    def use_of(name: str) -> SwapUse:
        if name in swaps:
            return SwapUse.SWAP
        return SwapUse.FILE_SYSTEM if name in (last.mounted_devices or ()) else SwapUse.UNKNOWN

    devices = [
        CompressedDevice(
            name=one.name,
            disk_bytes=one.disk_bytes,
            stored_bytes=one.stored_bytes,
            taken_bytes=one.taken_bytes,
            use=use_of(one.name),
        )
        for one in sorted(last.zram or (), key=lambda one: -one.taken_bytes)
        if one.taken_bytes
    ]
    return devices[: limits.MAX_COMPRESSED_DEVICES]


def _zswap(last: MachineReading, first: MachineReading | None) -> CompressedSwap | None:
    if last.meminfo is None or not last.meminfo.zswap_taken_bytes:
        return None
    now, earlier = last.vmstat, first.vmstat if first else None
    in_zsmalloc = last.zswap_pool in ("", "zsmalloc")
    return CompressedSwap(
        stored_bytes=last.meminfo.zswap_stored_bytes,
        taken_bytes=last.meminfo.zswap_taken_bytes,
        in_pages=max(0, now.zswap_in_pages - earlier.zswap_in_pages) if now and earlier else 0,
        out_pages=max(0, now.zswap_out_pages - earlier.zswap_out_pages) if now and earlier else 0,
        memory_class=ClassName.ZSMALLOC if in_zsmalloc else ClassName.ALLOC_PAGE,
    )


def _balloon(last: MachineReading, page_bytes: int) -> BalloonMemory | None:
    if last.balloon is None:
        return None
    return BalloonMemory(
        driver=last.balloon.driver,
        size_bytes=_balloon_bytes(last, page_bytes),
        is_part_of_total=last.balloon.is_part_of_total,
        current_bytes=last.balloon.current_bytes,
        target_bytes=last.balloon.target_bytes,
    )


def _balloon_bytes(last: MachineReading, page_bytes: int) -> int:
    """Return the size by meminfo (since Linux 6.16), or by the events of vmstat."""
    if last.meminfo and last.meminfo.balloon_bytes is not None:
        return last.meminfo.balloon_bytes
    return last.vmstat.balloon_pages * page_bytes if last.vmstat else 0


def _reserved(last: MachineReading, *, page_bytes: int, mem_total_bytes: int) -> ReservedAtBoot | None:
    if not last.present_pages:
        return None
    ram_bytes = max(last.present_pages * page_bytes, last.firmware_ram_bytes or 0)
    in_balloon = last.balloon is not None and not last.balloon.is_part_of_total
    outside_bytes = _balloon_bytes(last, page_bytes) if in_balloon else 0
    crash_bytes = last.areas.crash_kernel_bytes if last.areas else 0
    return ReservedAtBoot(
        ram_bytes=ram_bytes,
        reserved_bytes=max(0, ram_bytes - mem_total_bytes - outside_bytes),
        memory_map_bytes=last.present_pages * STRUCT_PAGE_BYTES,
        kernel_bytes=last.areas.kernel_bytes if last.areas else None,
        crash_kernel_bytes=max(crash_bytes, last.crash_kernel_bytes or 0),
    )


def _vmalloc(last: MachineReading, first: MachineReading | None, page_bytes: int) -> VmallocCallers | None:
    if last.vmalloc is None:
        return None
    earlier: Mapping[tuple[str, str], int] | None = None
    if first and first.vmalloc and first.vmalloc.is_complete and last.vmalloc.is_complete:
        earlier = {(one.function, one.module): one.pages for one in first.vmalloc.callers}
    callers = [
        VmallocCaller(
            function=one.function[: limits.MAX_SHORT_TEXT],
            module=one.module[:_NAME],
            size_bytes=one.pages * page_bytes,
            areas=one.areas,
            change_bytes=None
            if earlier is None
            else (one.pages - earlier.get((one.function, one.module), 0)) * page_bytes,
        )
        for one in last.vmalloc.callers[: limits.MAX_VMALLOC_CALLERS]
    ]
    return VmallocCallers(
        callers=callers,
        callers_total=len(last.vmalloc.callers),
        read_bytes=sum(one.pages for one in last.vmalloc.callers) * page_bytes,
        is_complete=last.vmalloc.is_complete,
    )


def _sites(last: MachineReading, first: MachineReading | None) -> AllocationSites | None:
    if not last.allocation_sites:
        return None
    earlier: dict[tuple[str, str], int] | None = None
    if first and first.allocation_sites:
        earlier = {_site_key(one): one.size_bytes for one in first.allocation_sites}
    largest = sorted(last.allocation_sites, key=lambda one: -one.size_bytes)
    return AllocationSites(
        sites=list(_site_records(largest[: limits.MAX_ALLOCATION_SITES], earlier)), sites_total=len(largest)
    )


def _site_key(site: Site) -> tuple[str, str]:
    return site.place, site.function


def _site_records(sites: Sequence[Site], earlier: Mapping[tuple[str, str], int] | None) -> Iterator[AllocationSite]:
    for one in sites:
        yield AllocationSite(
            place=one.place[: limits.MAX_SHORT_TEXT],
            function=one.function[: limits.MAX_SHORT_TEXT],
            module=one.module[:_NAME],
            size_bytes=one.size_bytes,
            calls=one.calls,
            change_bytes=None if earlier is None else one.size_bytes - earlier.get(_site_key(one), 0),
            memory_class=site_class(one.place, one.function),
        )


def _page_owner(last: MachineReading, page_bytes: int) -> list[PageOwnerStack]:
    largest = sorted(last.page_owner or (), key=lambda one: -one.pages)[: limits.MAX_PAGE_OWNER_STACKS]
    return [
        PageOwnerStack(
            frames=[frame[: limits.MAX_SHORT_TEXT] for frame in one.frames[: limits.MAX_PAGE_OWNER_FRAMES]],
            size_bytes=one.pages * page_bytes,
        )
        for one in largest
    ]


def _gpu(last: MachineReading) -> GpuMemory | None:
    meminfo = last.meminfo
    if meminfo is None or meminfo.gpu_active_bytes is None:
        return None
    return GpuMemory(active_bytes=meminfo.gpu_active_bytes, reclaimable_bytes=meminfo.gpu_reclaimable_bytes or 0)


def _free_blocks(last: MachineReading, first: MachineReading | None, page_bytes: int) -> FreeBlocks | None:
    if last.free_blocks is None:
        return None
    sizes = [pages * page_bytes for pages in free_pages_by_order(last.free_blocks)][: limits.MAX_FREE_ORDERS]
    now, earlier = last.vmstat, first.vmstat if first else None
    if now is None or earlier is None:
        return FreeBlocks(bytes_by_order=sizes)
    return FreeBlocks(
        bytes_by_order=sizes,
        compaction_stalls=max(0, now.compaction_stalls - earlier.compaction_stalls),
        compaction_failures=max(0, now.compaction_failures - earlier.compaction_failures),
        reclaim_stalls=max(0, now.reclaim_stalls - earlier.reclaim_stalls),
    )
