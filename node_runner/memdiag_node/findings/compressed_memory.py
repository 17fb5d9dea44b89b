"""Rules: compressed memory of zram and zswap, and memory of graphics drivers (docs/machine.md)."""

from collections.abc import Iterator

from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.machine import CompressedDevice, SwapUse
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation


def compressed_memory(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each zram device, and for zswap, that takes the notable size."""
    machine = situation.measured.machine
    if machine is None:
        return
    for device in machine.compressed_devices:
        if device.taken_bytes >= situation.notable_bytes:
            yield _of_device(situation, device)
    zswap = machine.compressed_swap
    if zswap is not None and zswap.taken_bytes >= situation.notable_bytes:
        taken, stored = format_bytes(zswap.taken_bytes), format_bytes(zswap.stored_bytes)
        yield Draft(
            kind=FindingKind.LARGE_HOLDER,
            memory_class=zswap.memory_class,
            size_bytes=zswap.taken_bytes,
            owner=MemoryOwner(kind=OwnerKind.KERNEL, name="zswap"),
            leak=LeakAnswer.NO,
            sentence=f"zswap stores {stored} of swapped out memory in {taken} "
            f"(ratio {ratio(zswap.stored_bytes, zswap.taken_bytes)}).",
            reasons=[
                f"the threshold for compressed memory is {format_bytes(situation.notable_bytes)}",
                f"in the window, {zswap.out_pages} pages were stored and {zswap.in_pages} were read back",
            ],
            advice="Check which processes are swapped out (VmSwap in /proc/PID/status): the memory is freed when they "
            "end or need it again.",
            sections=["machine.compressedSwap"],
            is_notable=True,
        )


def ratio(stored_bytes: int, taken_bytes: int) -> str:
    """Return how many bytes are stored in each byte of memory, as text."""
    return f"{stored_bytes / taken_bytes:.1f}" if taken_bytes else "unknown"


def _of_device(situation: Situation, device: CompressedDevice) -> Draft:
    taken, stored = format_bytes(device.taken_bytes), format_bytes(device.stored_bytes)
    purpose = {SwapUse.SWAP: ", used for swap,", SwapUse.FILE_SYSTEM: ", which is mounted,"}.get(device.use, "")
    return Draft(
        kind=FindingKind.LARGE_HOLDER,
        memory_class=ClassName.ZSMALLOC,
        size_bytes=device.taken_bytes,
        owner=MemoryOwner(kind=OwnerKind.DEVICE, name=device.name),
        leak=LeakAnswer.NO,
        freed_by=FreedBy(action=_action(device), size_bytes=device.taken_bytes),
        sentence=f"The compressed device {device.name}{purpose} stores {stored} in {taken} of memory "
        f"(ratio {ratio(device.stored_bytes, device.taken_bytes)}).",
        reasons=[
            f"the threshold for compressed memory is {format_bytes(situation.notable_bytes)}",
            f"the disk has {format_bytes(device.disk_bytes)}",
        ],
        advice="If it is swap, check which processes are swapped out (VmSwap in /proc/PID/status)."
        if device.use is SwapUse.SWAP
        else "Delete what is not needed on it, or reset the device if nothing on it is.",
        sections=["machine.compressedDevices"],
        is_notable=True,
    )


def _action(device: CompressedDevice) -> str:
    if device.use is SwapUse.SWAP:
        stored = format_bytes(device.stored_bytes)
        return (
            f"End the processes that are swapped out to {device.name}. (swapoff frees it too, but needs {stored} of "
            "free memory for what comes back.)"
        )
    first = "Unmount it, then write" if device.use is SwapUse.FILE_SYSTEM else "If nothing uses it, write"
    return f"{first} 1 to /sys/block/{device.name}/reset: its contents are lost."


def gpu_memory(situation: Situation) -> Iterator[Draft]:
    """Yield a finding about the AllocPage of graphics drivers: buffers in use, and pools that can be reclaimed.

    The kernel has both sums since Linux 6.19. Buffers of processes are also holders of the kind DrmBuffer.
    """
    machine = situation.measured.machine
    gpu = machine.gpu if machine else None
    if gpu is None:
        return
    alloc_page_bytes = situation.class_bytes.get(ClassName.ALLOC_PAGE, 0)
    parts = ((gpu.active_bytes, False, "buffers in use"), (gpu.reclaimable_bytes, True, "pools for later buffers"))
    for size_bytes, reclaimable, what in parts:
        if size_bytes < situation.notable_bytes:
            continue
        claimed_bytes = min(size_bytes, alloc_page_bytes)
        alloc_page_bytes -= claimed_bytes
        yield Draft(
            kind=FindingKind.LARGE_HOLDER,
            memory_class=ClassName.ALLOC_PAGE,
            size_bytes=size_bytes,
            claims_bytes={ClassName.ALLOC_PAGE: claimed_bytes},
            owner=MemoryOwner(kind=OwnerKind.KERNEL, name="GPU drivers"),
            leak=LeakAnswer.NO,
            reclaimable=reclaimable,
            sentence=f"GPU drivers have {format_bytes(size_bytes)} of system memory in {what}"
            f"{', which the kernel takes back when memory is needed' if reclaimable else ''}.",
            reasons=[f"the threshold for memory of a holder is {format_bytes(situation.notable_bytes)}"],
            advice="" if reclaimable else "Check which processes use graphics devices (drm- in /proc/PID/fdinfo).",
            sections=["machine.gpu"],
            is_notable=not reclaimable,
        )
