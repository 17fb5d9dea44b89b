"""The report for users: text from one evidence document."""

from collections.abc import Iterator, Sequence

from memdiag_api.evidence import (
    AllocationUnit,
    Breakdown,
    Census,
    CensusShare,
    Context,
    Evidence,
    Holder,
    NeedState,
    Stack,
    TraceCounters,
)
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.counted_stacks import counted_stacks
from memdiag_node.render.allocators import allocators_parts
from memdiag_node.render.cgroups import oom_kills_lines, removed_cgroups_lines
from memdiag_node.render.clues import clues_lines
from memdiag_node.render.dentries import dentries_lines
from memdiag_node.render.files import files_lines
from memdiag_node.render.findings import answer_lines, findings_lines, reasons_lines
from memdiag_node.render.history import history_lines
from memdiag_node.render.machine import machine_lines
from memdiag_node.render.namespaces import namespaces_lines
from memdiag_node.render.owners import containers_lines, owners_lines
from memdiag_node.render.packets import packets_lines
from memdiag_node.render.slab import slab_lines
from memdiag_node.render.text import percent, table, wrapped

_BAR_WIDTH = 24
_FRAMES_SHOWN = 12
_FDS_SHOWN = 3
_PROCESS_WIDTH = 40
# The normal activity of a machine leaves many stacks with a page or two.
_ALWAYS_SHOWN = 3
_SMALL_BYTES = 256 * 1024
_SMALL_CENSUS_BYTES = 1024 * 1024
_CONTAINER_ID_SHOWN = 12
_CONTAINERS_SHOWN = 5
_SPARKS = " ▁▂▃▄▅▆▇█"


def render_report(evidence: Evidence) -> str:
    """Return the complete report, at most 100 columns wide: the answer in ten lines, then the evidence."""
    heading = _heading(evidence)
    parts = [
        heading,
        answer_lines(evidence, used_lines=len(heading) + 1),
        reasons_lines(evidence),
        findings_lines(evidence),
        _breakdown(evidence.breakdown) if evidence.breakdown else [],
        owners_lines(evidence.owners, evidence.host.mem_total_bytes),
        containers_lines(evidence.containers),
        removed_cgroups_lines(evidence.removed_cgroups),
        oom_kills_lines(evidence.oom_kills),
        _holders(evidence),
        _stacks(evidence),
        _ledger(evidence),
        *(_objects(evidence.census) if evidence.census else ()),
        _census(evidence.census) if evidence.census else [],
        machine_lines(evidence.machine, page_bytes=evidence.host.page_size_bytes) if evidence.machine else [],
        *(allocators_parts(evidence.machine) if evidence.machine else ()),
        history_lines(evidence.summary, evidence.history),
        _coverage(evidence),
    ]
    return "\n".join(line for part in parts for line in (*part, "") if part).rstrip("\n") + "\n"


def _heading(evidence: Evidence) -> list[str]:
    host, window = evidence.host, evidence.window
    traced = f"traced for {window.traced_seconds:.1f} s" if window.traced_seconds else "not traced"
    lines = [
        f"memdiag: {host.node_name}, Linux {host.kernel_release}, {host.cpus} CPUs, "
        f"{format_bytes(host.mem_total_bytes)}, {traced}"
    ]
    if window.interrupted:
        lines.append(
            f"Ended early: {window.requested_seconds:.0f} s were requested. The figures cover what was traced."
        )
    return lines


def _breakdown(breakdown: Breakdown) -> list[str]:
    change = breakdown.alloc_page_change_bytes
    lines = [f"WHERE THE MEMORY IS   {format_bytes(breakdown.mem_total_bytes)} in total"]
    for group in ("Application", "Kernel", "Free"):
        members = [one for one in breakdown.classes if one.group == group and one.size_bytes]
        total = sum(one.size_bytes for one in members)
        lines.append(f"  {group:<26}{format_bytes(total):>10}  {percent(total, breakdown.mem_total_bytes)}")
        for one in sorted(members, key=lambda member: -member.size_bytes):
            bar = "#" * round(_BAR_WIDTH * one.size_bytes / max(1, breakdown.mem_total_bytes))
            note = (
                f"{'+' if change >= 0 else ''}{format_bytes(change)} in the window"
                if one.name == ClassName.ALLOC_PAGE
                else ""
            )
            row = f"    {one.name:<24}{format_bytes(one.size_bytes):>10}  "
            lines.append(
                f"{row}{percent(one.size_bytes, breakdown.mem_total_bytes)}  {bar:<{_BAR_WIDTH}} {note}".rstrip()
            )
    return lines


def _holders(evidence: Evidence) -> list[str]:
    if evidence.coverage is None:
        return []
    lines = ["WHO HOLDS IT   memory that sockets and other holders keep from being freed; HEADS are slab"]
    if not evidence.holders:
        return [*lines, "  No holder pins memory."]
    header = ("PINNED", "HEADS", "UNREAD", "CHARGED", "STUCK", "PROCESS", "FD")
    shown = [
        holder
        for number, holder in enumerate(evidence.holders)
        if number < _ALWAYS_SHOWN or _kept_bytes(holder) >= _SMALL_BYTES or holder.stuck_seconds is not None
    ]
    rows = table((header, *map(_holder_cells, shown)), right=(0, 1, 2, 3, 4))
    lines.append(rows[0])
    for row, holder in zip(rows[1:], shown, strict=True):
        lines += [row, *wrapped(_what(holder), " " * 12)]
    return lines + _left_out(len(evidence.holders) - len(shown))


def _holder_row(holder: Holder) -> tuple[str, ...]:
    owner = holder.owners[0] if holder.owners else None
    more = f" (+{holder.owners_total - 1})" if holder.owners_total > 1 else ""
    return (
        format_bytes(holder.pinned_bytes),
        format_bytes(holder.head_bytes) if holder.head_bytes else "-",
        format_bytes(holder.unread_bytes),
        format_bytes(holder.charge_bytes),
        f">={holder.stuck_seconds:.0f}s" if holder.stuck_seconds is not None else "-",
        f"{shown_process(owner.comm, owner.pid)}{more}" if owner else f"({holder.unowned_reason or 'no process'})",
        _fds(owner.fds) if owner else "-",
    )


def _holder_cells(holder: Holder) -> tuple[str, ...]:
    """Return a row of the table, in which a long reason must not push the last column over the edge."""
    *figures, process, fds = _holder_row(holder)
    return *figures, process if len(process) <= _PROCESS_WIDTH else process[: _PROCESS_WIDTH - 3] + "...", fds


def _kept_bytes(holder: Holder) -> int:
    return holder.pinned_bytes + holder.head_bytes


def _fds(fds: Sequence[int]) -> str:
    return ",".join(map(str, fds[:_FDS_SHOWN])) + ("..." if len(fds) > _FDS_SHOWN else "")


def _what(holder: Holder) -> str:
    socket, owner = holder.socket, holder.owners[0] if holder.owners else None
    if socket is None:
        words = [holder.description or holder.kind.value]
    else:
        addresses = " < ".join(part for part in (socket.local_address, socket.remote_address) if part)
        words = [socket.protocol or socket.family, socket.state, addresses]
    if holder.memory_class != ClassName.ALLOC_PAGE:
        words.append(f"({holder.memory_class}, not allocpage)")
    if owner and owner.container_id:
        words.append(f"container {owner.container_id[:_CONTAINER_ID_SHOWN]}")
    return " ".join(word for word in words if word)


def _stacks(evidence: Evidence) -> list[str]:
    if evidence.trace is None:
        return []
    trace = evidence.trace
    lines = [
        f"WHICH CALL STACKS   {format_bytes(trace.outstanding_bytes)} in {trace.outstanding_blocks} blocks were "
        f"allocated in the window and not freed"
    ]
    shown = [
        stack
        for number, stack in enumerate(evidence.stacks)
        if number < _ALWAYS_SHOWN or stack.outstanding_bytes >= _SMALL_BYTES
    ]
    for number, stack in enumerate(shown, start=1):
        lines += _stack(number, stack, evidence)
    return lines + _left_out(len(evidence.stacks) - len(shown))


def _left_out(count: int) -> list[str]:
    return [f"  {count} more with less than {format_bytes(_SMALL_BYTES)} each"] if count else []


def _stack(number: int, stack: Stack, evidence: Evidence) -> Iterator[str]:
    other = "" if stack.memory_class == ClassName.ALLOC_PAGE else f" of {stack.memory_class}, not allocpage"
    if evidence.trace and not counted_stacks([stack], evidence.trace.object_classes):
        other += ", also listed as objects"
    yield from wrapped(
        f"{format_bytes(stack.outstanding_bytes)} outstanding ({_blocks(stack)}){other}, {stack.trend.value.lower()}, "
        f"{format_bytes(stack.growth_bytes_per_second)}/s",
        f"  #{number}  ",
    )
    if stack.births_bytes:
        yield f"      allocated |{_sparkline(stack.births_bytes)}| over the window"
    if stack.context is not Context.PROCESS:
        yield f"      in {stack.context.value} context: no process can be named"
    elif stack.processes:
        by = [(shown_process(one.comm, one.pid), one.outstanding_bytes) for one in stack.processes[:3]]
        named = ", ".join(f"{process} {format_bytes(size_bytes)}" for process, size_bytes in by)
        yield from wrapped(named, "      by ")
    for part in stack.held_by[:3]:
        if part.holder < len(evidence.holders):
            holder = evidence.holders[part.holder]
            *_, process, fd = _holder_row(holder)
            yield from wrapped(f"{process} fd {fd}: {_what(holder)}", f"      {part.share:.0%} held by ")
    yield from (f"        {frame}" for frame in stack.frames[:_FRAMES_SHOWN])
    if len(stack.frames) > _FRAMES_SHOWN:
        yield f"        ... {len(stack.frames) - _FRAMES_SHOWN} more"


def _blocks(stack: Stack) -> str:
    """Return what a stack allocated: `kmalloc-64, 192,000 objects`, or blocks by order."""
    if stack.unit is AllocationUnit.OBJECTS:
        what = f"{stack.outstanding_blocks:,} objects"
    else:
        what = ", ".join(f"{count} of order {order}" for order, count in stack.outstanding_by_order.items())
    return f"{stack.slab_cache}, {what}" if stack.slab_cache else what


def _ledger(evidence: Evidence) -> list[str]:
    ledger = evidence.ledger
    if ledger is None:
        return []
    parts = [(line.name, line.size_bytes) for line in ledger.lines if line.size_bytes]
    parts.append(("Unexplained", ledger.unexplained_bytes))
    rows = [(name, format_bytes(size), percent(size, ledger.alloc_page_bytes)) for name, size in parts]
    lines = [f"WHAT HOLDS ALLOCPAGE   {format_bytes(ledger.alloc_page_bytes)} in total", *table(rows, right=(1, 2))]
    if ledger.unexplained_bytes < 0:
        lines += wrapped("below zero: the lines are not read at the same moment, and add up to more", "  ")
    lines += [
        f"  of it in container {share.container_id[:_CONTAINER_ID_SHOWN]}: {format_bytes(share.size_bytes)}"
        for share in ledger.containers[:_CONTAINERS_SHOWN]
    ]
    return lines


def _objects(census: Census) -> Iterator[list[str]]:
    """Yield the sections of what was read through the slabs."""
    if census.slab:
        yield slab_lines(census.slab)
    if census.clues:
        yield clues_lines(census.clues)
    if census.packets:
        yield packets_lines(census.packets)
    if census.namespaces:
        yield namespaces_lines(census.namespaces)
    if census.files:
        yield files_lines(census.files)
    if census.dentries:
        yield dentries_lines(census.dentries)


def _census(census: Census) -> list[str]:
    """Render blocks and charges, the largest first, without small ones."""
    rows = [("FRAMES", "SIZE", "IN KNOWN HOLDERS")]
    for blocks in sorted(census.compound, key=lambda one: -one.size_bytes):
        if blocks.size_bytes >= _SMALL_CENSUS_BYTES:
            name = f"blocks of order {blocks.order}"
            rows.append((name, format_bytes(blocks.size_bytes), _held_part(blocks.held_bytes)))
    for share in (census.charged or ())[:_CONTAINERS_SHOWN]:
        size_bytes = share.single_bytes + share.compound_bytes
        if size_bytes >= _SMALL_CENSUS_BYTES:
            rows.append((f"charged to {_charged(share)}", format_bytes(size_bytes), _held_part(share.held_bytes)))
    if len(rows) == 1:
        return []
    lines = ["KERNEL PAGES BY BLOCK AND CHARGE   upper bounds of allocpage", *table(rows, right=(1, 2))]
    if census.scanned_share < 1:
        lines.append(f"  only {census.scanned_share:.0%} of the page frames were scanned in time")
    return lines


def _charged(share: CensusShare) -> str:
    if share.container_id:
        return f"container {share.container_id[:_CONTAINER_ID_SHOWN]}"
    return f"pod {share.pod_uid}" if share.pod_uid else "no container"


def _held_part(held_bytes: int | None) -> str:
    return "-" if held_bytes is None else format_bytes(held_bytes)


def _coverage(evidence: Evidence) -> list[str]:
    lines: list[str] = []
    for need in evidence.needs:
        if need.state is not NeedState.MET:
            lines += wrapped(f"{need.name}: {need.detail} {need.remedy}".strip(), f"  {need.state.value.lower()}: ")
    for note in evidence.notes:
        lines += wrapped(note, "  note: ")
    if evidence.trace:
        lines += _counters(evidence.trace.counters)
    if evidence.coverage:
        scan = evidence.coverage
        lines.append(
            f"  scanned {scan.sockets} sockets, {scan.queues} queues, {scan.packets} packets "
            f"in {scan.scan_seconds:.2f} s"
        )
        lines += [line for what in scan.not_seen for line in wrapped(what, "  not seen: ")]
    return ["WHAT THIS COVERS", *lines] if lines else []


def _counters(counters: TraceCounters) -> list[str]:
    """Render what the trace saw, and what it missed, if anything."""
    lines = wrapped(
        f"{counters.events_seen} allocations, {counters.events_filtered} of them user memory; its programs used "
        f"{counters.program_seconds:.2f} s of CPU time",
        "  traced ",
    )
    if counters.recorded_objects:
        lines += wrapped(
            f"{counters.recorded_objects} slab objects, vmalloc areas and per-CPU allocations were recorded; "
            f"{counters.unseen_frees} of them were freed in bulk; the programs used "
            f"{counters.object_program_seconds:.2f} s of CPU time",
            "  objects: ",
        )
    if counters.events_sampled_out:
        text = f"{counters.sampled_share:.0%} were recorded, to keep within the CPU budget; figures are scaled"
        if counters.large_sampled_out:
            text += f"; {counters.large_sampled_out} blocks of several pages were skipped, far above the budget"
        lines += wrapped(text, "  sampled: ")
    losses = {
        "stacks could not be stored": counters.lost_stacks,
        f"blocks did not fit in a table ({format_bytes(counters.lost_record_bytes)} not freed)": counters.lost_records,
        "blocks were recorded without their process": counters.unnamed_blocks,
        "times a memory cgroup did not fit in a table": counters.lost_cgroups,
        "runs of a program were skipped by the kernel": counters.missed_runs,
        "objects did not fit in a table": counters.lost_objects,
        "runs of a program for objects were skipped by the kernel": counters.missed_object_runs,
        "recorded slab objects are in no slab that could be read": counters.unresolved_objects,
    }
    for what, count in losses.items():
        if count:
            lines += wrapped(f"{count} {what}", "  lost: ")
    if counters.untraced_bytes > 0:
        text = (
            f"{format_bytes(counters.untraced_bytes)} were allocated on paths without a tracepoint (bulk allocations)"
        )
        lines += wrapped(text, "  untraced: ")
    aside = [f"{name} {format_bytes(size)}" for name, size in counters.set_aside_bytes.items() if size]
    if counters.movable_outstanding_bytes > 0:
        aside.append(f"movable user memory {format_bytes(counters.movable_outstanding_bytes)}")
    return lines + wrapped(", ".join(aside), "  not counted as allocpage: ")


def _sparkline(values: Sequence[int]) -> str:
    top = max(values, default=0)
    if not top:
        return " " * len(values)
    return "".join(_SPARKS[-(-(len(_SPARKS) - 1) * value // top)] for value in values)
