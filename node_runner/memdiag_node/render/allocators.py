"""Who allocated, by the kernel's own accounts, for the report: vmalloc, source lines, page_owner."""

from collections.abc import Iterator, Sequence

from memdiag_api.machine import AllocationSites, Machine, PageOwnerStack, VmallocCallers
from memdiag_api.units import format_bytes
from memdiag_node.render.text import table, wrapped

_SHOWN = 8
_SMALL_BYTES = 1 << 20
_STACKS_SHOWN = 3
_FRAMES_SHOWN = 6


def allocators_parts(machine: Machine) -> Iterator[list[str]]:
    """Yield the sections; an account that this kernel does not keep is an empty one."""
    if machine.vmalloc:
        yield _vmalloc(machine.vmalloc)
    if machine.allocation_sites:
        yield _sites(machine.allocation_sites)
    yield _page_owner(machine.page_owner)


def _vmalloc(record: VmallocCallers) -> list[str]:
    shown = [one for one in record.callers if one.size_bytes >= _SMALL_BYTES][:_SHOWN]
    if not shown:
        return []
    lines = [f"VMALLOC BY CALLER   {format_bytes(record.read_bytes)} of {record.callers_total} kernel functions"]
    if not record.is_complete:
        lines.append("  Not all areas were read: a limit of lines or of time ended it.")
    rows: list[tuple[str, ...]] = [("SIZE", "CHANGE", "AREAS", "FUNCTION")]
    rows += [
        (format_bytes(one.size_bytes), _change(one.change_bytes), f"{one.areas:,}", _place(one.function, one.module))
        for one in shown
    ]
    return [*lines, *table(rows, right=(0, 1, 2)), *_others(record.callers_total - len(shown), "functions")]


def _sites(record: AllocationSites) -> list[str]:
    shown = [one for one in record.sites if one.size_bytes >= _SMALL_BYTES][:_SHOWN]
    if not shown:
        return []
    rows: list[tuple[str, ...]] = [("SIZE", "CHANGE", "NOT FREED", "CLASS", "FUNCTION AND SOURCE LINE")]
    rows += [
        (
            format_bytes(one.size_bytes),
            _change(one.change_bytes),
            f"{one.calls:,}",
            one.memory_class or "-",
            f"{_place(one.function, one.module)} {one.place}",
        )
        for one in shown
    ]
    return [
        "ALLOCATIONS BY SOURCE LINE   since boot, user memory included; slab is in it twice",
        *table(rows, right=(0, 1, 2)),
        *_others(record.sites_total - len(shown), "source lines"),
    ]


def _page_owner(stacks: Sequence[PageOwnerStack]) -> list[str]:
    lines = []
    for one in stacks[:_STACKS_SHOWN]:
        if one.size_bytes >= _SMALL_BYTES:
            more = " < ..." if len(one.frames) > _FRAMES_SHOWN else ""
            lines += wrapped(" < ".join(one.frames[:_FRAMES_SHOWN]) + more, f"  {format_bytes(one.size_bytes):>9}  ")
    return ["PAGE OWNER   call stacks with the most pages since boot, user memory included", *lines] if lines else []


def _place(function: str, module: str) -> str:
    return f"{function} [{module}]" if module else function


def _change(change_bytes: int | None) -> str:
    if change_bytes is None:
        return "-"
    return f"{'+' if change_bytes >= 0 else ''}{format_bytes(change_bytes)}"


def _others(count: int, what: str) -> list[str]:
    return [f"  and {count:,} more {what}"] if count > 0 else []
