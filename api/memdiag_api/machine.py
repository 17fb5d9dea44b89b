"""Memory that belongs to the machine rather than to a process or a kernel object (docs/machine.md)."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import Sentence, ShortText
from memdiag_api.record import ByteCount, Count, Name, Record, Share, SignedByteCount


class HugePagePool(Record):
    """HugePagePool is the pool of huge pages of one size: of the machine, or of one of its NUMA nodes."""

    page_size_bytes: ByteCount
    numa_node: Count | None = Field(default=None, description="NUMA node of the pool. Null for the whole machine.")
    pages: Count = Field(description="Number of huge pages, used or not.")
    free_pages: Count = Field(description="Number of huge pages that nothing uses, including reserved ones.")
    reserved_pages: Count = Field(
        default=0, description="Number of free pages that are promised to a mapping. The kernel has none per NUMA node."
    )
    surplus_pages: Count = Field(
        default=0, description="Number of pages above the size of the pool, which are freed after their use."
    )


class SwapUse(StrEnum):
    """SwapUse is what a compressed device is used for."""

    SWAP = "Swap"
    FILE_SYSTEM = "FileSystem"
    UNKNOWN = "Unknown"


class CompressedDevice(Record):
    """CompressedDevice is a zram device: a disk whose contents are compressed memory."""

    name: Name = Field(description="Name of the device, such as zram0.")
    disk_bytes: ByteCount
    stored_bytes: ByteCount = Field(description="Bytes that were written to it and are stored.")
    taken_bytes: ByteCount = Field(description="Bytes of memory that they take.")
    use: SwapUse = Field(description="What it is used for. Unknown if mounts cannot be read.")


class CompressedSwap(Record):
    """CompressedSwap is zswap: pages that were swapped out to compressed memory in front of the swap device."""

    stored_bytes: ByteCount = Field(description="Bytes of memory that was swapped out and is stored.")
    taken_bytes: ByteCount = Field(description="Bytes of memory that they take.")
    in_pages: Count = Field(default=0, description="Number of pages that were read back in the window.")
    out_pages: Count = Field(default=0, description="Number of pages that were stored in the window.")
    memory_class: Name = Field(description="Class of the breakdown that the memory belongs to.")


class BalloonMemory(Record):
    """BalloonMemory is memory that the hypervisor took back through a driver of the guest."""

    driver: Name = Field(description="Name of the driver: virtio_balloon, vmw_balloon, hv_balloon or xen_balloon.")
    size_bytes: ByteCount
    is_part_of_total: bool = Field(description="If true, it is part of MemTotal, and a class of the breakdown.")
    current_bytes: ByteCount | None = Field(
        default=None, description="Memory of the guest, if the driver shows it (Xen)."
    )
    target_bytes: ByteCount | None = Field(
        default=None, description="Memory that the hypervisor wants the guest to have, if the driver shows it (Xen)."
    )


class ReservedAtBoot(Record):
    """ReservedAtBoot is the memory of the machine that is not part of MemTotal."""

    ram_bytes: ByteCount = Field(description="Memory of the machine, from its firmware or from the kernel's zones.")
    reserved_bytes: ByteCount = Field(description="Part of it that is not in MemTotal and not in a balloon.")
    memory_map_bytes: ByteCount = Field(description="Part for the kernel's description of each page, computed.")
    kernel_bytes: ByteCount | None = Field(
        default=None, description="Part for the kernel's code and data. Null if /proc/iomem cannot be read."
    )
    crash_kernel_bytes: ByteCount = Field(default=0, description="Part that is kept for a crash kernel.")


class VmallocCaller(Record):
    """VmallocCaller is the vmalloc memory that one kernel function allocated, without kernel stacks."""

    function: ShortText = Field(description="Name of the kernel function.")
    module: Name = Field(default="", description="Module of the function. Empty if it is part of the kernel itself.")
    size_bytes: ByteCount
    areas: Count = Field(description="Number of areas.")
    change_bytes: SignedByteCount | None = Field(
        default=None, description="Change over the window. Null if the start of the window was not read."
    )


class VmallocCallers(Record):
    """VmallocCallers is vmalloc memory by the kernel function that allocated it."""

    callers: Annotated[list[VmallocCaller], Field(max_length=limits.MAX_VMALLOC_CALLERS)] = Field(
        description="The largest callers, largest first."
    )
    callers_total: Count = Field(description="Number of callers, including those that are not listed.")
    read_bytes: ByteCount = Field(description="Bytes of all areas that were read, without kernel stacks.")
    is_complete: bool = Field(default=True, description="False if a limit of lines or of time ended the reading.")


class AllocationSite(Record):
    """AllocationSite is a line of kernel source, and what it allocated since boot and has not freed."""

    place: ShortText = Field(description="File and line of the source.")
    function: ShortText = Field(description="Name of the function.")
    module: Name = Field(default="", description="Module of the function. Empty if it is part of the kernel itself.")
    size_bytes: ByteCount
    calls: Count = Field(description="Number of allocations that are not freed.")
    change_bytes: SignedByteCount | None = Field(
        default=None, description="Change over the window. Null if the start of the window was not read."
    )
    memory_class: Name = Field(
        default="", description="Class of the breakdown, guessed from the file. Empty if the file does not show it."
    )


class AllocationSites(Record):
    """AllocationSites is the kernel's own account of allocations by source line (CONFIG_MEM_ALLOC_PROFILING).

    Memory of slabs is in it twice: as pages of the slab allocator, and as objects of the line that asked for them.
    """

    sites: Annotated[list[AllocationSite], Field(max_length=limits.MAX_ALLOCATION_SITES)] = Field(
        description="The largest sites, largest first."
    )
    sites_total: Count = Field(description="Number of sites with memory, including those that are not listed.")


class PageOwnerStack(Record):
    """PageOwnerStack is a call stack, and the pages that it allocated since boot and has not freed."""

    frames: Annotated[list[ShortText], Field(max_length=limits.MAX_PAGE_OWNER_FRAMES)] = Field(
        description="Functions of the stack, innermost first."
    )
    size_bytes: ByteCount


class GpuMemory(Record):
    """GpuMemory is system memory that drivers of graphics devices use, as the kernel counts it."""

    active_bytes: ByteCount = Field(description="Bytes in use by buffers.")
    reclaimable_bytes: ByteCount = Field(description="Bytes in the drivers' pools, which the kernel can take back.")


class FreeBlocks(Record):
    """FreeBlocks is the free memory by block size, and what the kernel had to do for larger blocks in the window."""

    bytes_by_order: Annotated[list[ByteCount], Field(max_length=limits.MAX_FREE_ORDERS)] = Field(
        description="Free bytes in blocks of order 0, 1, 2, ... A block has 2^order pages."
    )
    compaction_stalls: Count | None = Field(
        default=None,
        description="Number of allocations that waited for compaction in the window. Null if the start was not read.",
    )
    compaction_failures: Count | None = Field(
        default=None, description="Number of compactions in the window that did not yield the block."
    )
    reclaim_stalls: Count | None = Field(
        default=None, description="Number of allocations that waited for reclaim in the window."
    )


class HugePageZeros(Record):
    """HugePageZeros is the part of one container in the zero pages of transparent huge pages."""

    container_id: ShortText = Field(description="ID of the container. Empty for cgroups of no known container.")
    pod_uid: ShortText = Field(default="", description="UID of the pod.")
    sampled_pages: Count = Field(description="Number of its huge pages in the sample.")
    zero_bytes: ByteCount = Field(description="Estimated bytes of its zero pages on the node.")


class HugePageProcess(Record):
    """HugePageProcess is the part of one process in the zero pages of transparent huge pages."""

    pid: Count = Field(description="Process ID in the PID namespace of the host.")
    comm: ShortText = Field(description="Name of the process.")
    container_id: ShortText = Field(default="", description="ID of the container that is charged. Empty if not known.")
    pod_uid: ShortText = Field(default="", description="UID of the pod that is charged.")
    sampled_pages: Count = Field(description="Number of its huge pages in the sample.")
    zero_bytes: ByteCount = Field(description="Estimated bytes of its zero pages on the node.")


class HugePageSample(Record):
    """HugePageSample is an estimate of how much of the transparent huge pages of processes is zero.

    Contents are counted, and never published.
    """

    huge_pages: Count = Field(description="Number of anonymous transparent huge pages of the node.")
    huge_page_bytes: ByteCount = Field(description="Size of one huge page.")
    sampled_pages: Count = Field(description="Number of huge pages in the sample.")
    zero_share: Share = Field(description="Share of the small pages in them that are zero.")
    zero_bytes: ByteCount = Field(description="Estimated bytes of zero pages in all huge pages of the node.")
    error_bytes: ByteCount = Field(description="Standard error of zeroBytes.")
    mostly_zero_share: Share = Field(description="Share of the sampled huge pages that are zero to more than half.")
    containers: Annotated[list[HugePageZeros], Field(max_length=limits.MAX_HUGE_PAGE_OWNERS)] = Field(
        default_factory=list, description="By container, largest first."
    )
    processes: Annotated[list[HugePageProcess], Field(max_length=limits.MAX_HUGE_PAGE_OWNERS)] = Field(
        default_factory=list,
        description="By process, largest first. Of pages that forks share, any of them has them.",
    )


class Machine(Record):
    """Machine is memory that belongs to the machine rather than to a process or a kernel object."""

    huge_pages: Annotated[list[HugePagePool], Field(max_length=limits.MAX_HUGE_PAGE_POOLS)] = Field(
        default_factory=list,
        description="Pools of huge pages that are not empty, of the machine and then of its NUMA nodes.",
    )
    compressed_devices: Annotated[list[CompressedDevice], Field(max_length=limits.MAX_COMPRESSED_DEVICES)] = Field(
        default_factory=list, description="zram devices that hold data, largest first."
    )
    compressed_swap: CompressedSwap | None = Field(default=None, description="zswap. Null if it holds nothing.")
    balloon: BalloonMemory | None = Field(default=None, description="Balloon. Null if there is no balloon driver.")
    reserved: ReservedAtBoot | None = Field(default=None, description="Memory outside of MemTotal. Null if not known.")
    vmalloc: VmallocCallers | None = Field(
        default=None, description="vmalloc by caller. Null if there is little, or it cannot be read."
    )
    allocation_sites: AllocationSites | None = Field(
        default=None, description="Allocations by source line. Null if this kernel does not count them."
    )
    page_owner: Annotated[list[PageOwnerStack], Field(max_length=limits.MAX_PAGE_OWNER_STACKS)] = Field(
        default_factory=list, description="The largest stacks of page_owner, if debugfs shows it."
    )
    gpu: GpuMemory | None = Field(default=None, description="Memory of graphics drivers. Null if it is not counted.")
    free_blocks: FreeBlocks | None = Field(default=None, description="Free memory by block size.")
    huge_page_sample: HugePageSample | None = Field(
        default=None, description="Zero pages in transparent huge pages. Null if they were not sampled."
    )
    not_read: Annotated[list[Sentence], Field(max_length=limits.MAX_NOT_SEEN)] = Field(
        default_factory=list, description="What could not be read, and why."
    )
