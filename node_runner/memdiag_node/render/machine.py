"""Memory of the machine itself in the report: pools, balloon, compressed memory, reserved and free memory."""

from collections.abc import Iterator, Sequence

from memdiag_api.machine import (
    BalloonMemory,
    CompressedDevice,
    CompressedSwap,
    FreeBlocks,
    GpuMemory,
    HugePagePool,
    HugePageSample,
    Machine,
    ReservedAtBoot,
    SwapUse,
)
from memdiag_api.units import format_bytes
from memdiag_node.render.text import cut, percent, wrapped

_CONTAINERS_SHOWN = 3
_CONTAINER_ID_SHOWN = 12
_DEVICES_SHOWN = 4
_NOT_READ_SHOWN = 4
_POOLS_SHOWN = 8
_LARGE_ORDER = 3
"""The largest blocks for which the kernel tries hard. Network packets use them."""
_NAME_WIDTH = 40
_NO_BREAK = "\xa0"
_USES = {SwapUse.SWAP: "swap", SwapUse.FILE_SYSTEM: "file system", SwapUse.UNKNOWN: "use not known"}


def machine_lines(machine: Machine, *, page_bytes: int) -> list[str]:
    """Return the lines of the report; nothing for what this machine does not have."""
    lines = [
        *_pools(machine.huge_pages),
        *(_sample(machine.huge_page_sample) if machine.huge_page_sample else ()),
        *(line for one in machine.compressed_devices[:_DEVICES_SHOWN] for line in _device(one)),
        *_more(len(machine.compressed_devices) - _DEVICES_SHOWN, "zram devices"),
        *(_zswap(machine.compressed_swap) if machine.compressed_swap else ()),
        *(_balloon(machine.balloon) if machine.balloon else ()),
        *(_reserved(machine.reserved) if machine.reserved else ()),
        *(_gpu(machine.gpu) if machine.gpu else ()),
        *(_free_blocks(machine.free_blocks, page_bytes) if machine.free_blocks else ()),
        *(cut(f"  not read: {' '.join(what.split())}") for what in machine.not_read[:_NOT_READ_SHOWN]),
        *_more(len(machine.not_read) - _NOT_READ_SHOWN, "parts could not be read"),
    ]
    return ["THE MACHINE   huge pages, compressed, reserved and free memory", *lines] if lines else []


def _pools(pools: Sequence[HugePagePool]) -> Iterator[str]:
    for pool in pools[:_POOLS_SHOWN]:
        counts = [
            f"{_size(pool, pool.pages)} in {pool.pages:,} pages",
            f"{pool.free_pages:,} free ({_size(pool, pool.free_pages)})",
        ]
        if pool.reserved_pages:
            counts.append(f"{pool.reserved_pages:,} of them reserved")
        if pool.surplus_pages:
            counts.append(f"{pool.surplus_pages:,} surplus")
        node = "" if pool.numa_node is None else f" on NUMA node {pool.numa_node}"
        name = f"huge pages of {format_bytes(pool.page_size_bytes)}{node}"
        yield from _line(name, ", ".join(counts))
    yield from _more(len(pools) - _POOLS_SHOWN, "pools of huge pages")


def _size(pool: HugePagePool, pages: int) -> str:
    return format_bytes(pages * pool.page_size_bytes)


def _sample(sample: HugePageSample) -> Iterator[str]:
    if not sample.huge_pages:
        return
    error = f" ± {format_bytes(sample.error_bytes)}" if sample.error_bytes else ""
    total_bytes = sample.huge_pages * sample.huge_page_bytes
    yield from _line(
        "huge pages of processes",
        f"{format_bytes(total_bytes)}, {format_bytes(sample.zero_bytes)}{error} of it zero, from a sample of "
        f"{sample.sampled_pages:,} of {sample.huge_pages:,}; {sample.mostly_zero_share:.0%} of them are zero to more "
        "than half",
    )
    shares = [
        f"container {one.container_id[:_CONTAINER_ID_SHOWN]} {format_bytes(one.zero_bytes)}"
        for one in sample.containers[:_CONTAINERS_SHOWN]
        if one.container_id and one.zero_bytes
    ]
    shares += [
        f"{one.comm}[{one.pid}] {format_bytes(one.zero_bytes)}"
        for one in sample.processes[:_CONTAINERS_SHOWN]
        if one.zero_bytes
    ]
    yield from wrapped(", ".join(shares), "    zero pages of ")


def _device(device: CompressedDevice) -> Iterator[str]:
    yield from _line(
        f"{device.name} ({_USES[device.use]})",
        f"{_compressed(device.stored_bytes, device.taken_bytes)}, disk of {format_bytes(device.disk_bytes)}",
    )


def _zswap(swap: CompressedSwap) -> Iterator[str]:
    moved = f", {swap.out_pages:,} pages stored and {swap.in_pages:,} read back in the window"
    text = _compressed(swap.stored_bytes, swap.taken_bytes)
    yield from _line("zswap", f"{text}{moved if swap.out_pages or swap.in_pages else ''}")


def _compressed(stored_bytes: int, taken_bytes: int) -> str:
    ratio = f", ratio {stored_bytes / taken_bytes:.1f}" if taken_bytes else ""
    return f"{format_bytes(taken_bytes)} of memory for {format_bytes(stored_bytes)} of data{ratio}"


def _balloon(balloon: BalloonMemory) -> Iterator[str]:
    """Yield nothing for an empty balloon that the hypervisor leaves empty."""
    current, target = balloon.current_bytes, balloon.target_bytes
    wants_less = current is not None and target is not None and target < current
    if not balloon.size_bytes and not wants_less:
        return
    where = "part of MemTotal" if balloon.is_part_of_total else "not part of MemTotal"
    text = f"{format_bytes(balloon.size_bytes)} taken back by the hypervisor, {where}"
    if current is not None and target is not None:
        text += f"; the machine has {format_bytes(current)}, the hypervisor wants {format_bytes(target)}"
    yield from _line(f"balloon ({balloon.driver})", text)


def _reserved(reserved: ReservedAtBoot) -> Iterator[str]:
    parts = {
        "memory map": reserved.memory_map_bytes,
        "kernel": reserved.kernel_bytes or 0,
        "crash kernel": reserved.crash_kernel_bytes,
    }
    other_bytes = reserved.reserved_bytes - sum(parts.values())
    rest = "other, with the kernel" if reserved.kernel_bytes is None else "other"
    named = [f"{name} {format_bytes(size)}" for name, size in {**parts, rest: other_bytes}.items() if size > 0]
    yield from _line(
        "reserved at boot",
        f"{format_bytes(reserved.reserved_bytes)} of {format_bytes(reserved.ram_bytes)}, not part of MemTotal: "
        f"{', '.join(named)}",
    )


def _gpu(gpu: GpuMemory) -> Iterator[str]:
    if gpu.active_bytes or gpu.reclaimable_bytes:
        pools = f", {format_bytes(gpu.reclaimable_bytes)} in pools that the kernel can reclaim"
        yield from _line("graphics drivers", f"{format_bytes(gpu.active_bytes)} in buffers{pools}")


def _free_blocks(blocks: FreeBlocks, page_bytes: int) -> Iterator[str]:
    free_bytes = sum(blocks.bytes_by_order)
    if free_bytes:
        large = percent(sum(blocks.bytes_by_order[_LARGE_ORDER:]), free_bytes).strip()
        sizes = [f"order {order} {format_bytes(size)}" for order, size in enumerate(blocks.bytes_by_order)]
        block = format_bytes(page_bytes << _LARGE_ORDER)
        text = f"{format_bytes(free_bytes)}, {large} of it in blocks of {block} or more: "
        unbroken = ", ".join(size.replace(" ", _NO_BREAK) for size in sizes)
        yield from (line.replace(_NO_BREAK, " ") for line in _line("free blocks", text + unbroken))
    waits = {
        "waits for compaction": blocks.compaction_stalls,
        "failed compactions": blocks.compaction_failures,
        "waits for reclaim": blocks.reclaim_stalls,
    }
    counts = ", ".join(f"{count:,} {what}" for what, count in waits.items() if count)
    if counts:
        yield from _line("allocations in the window", counts)


def _line(name: str, text: str) -> list[str]:
    return wrapped(text, f"  {name[:_NAME_WIDTH]}: ")


def _more(count: int, what: str) -> list[str]:
    return [f"  {count} more {what}"] if count > 0 else []
