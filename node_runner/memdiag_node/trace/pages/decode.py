"""From the tables of the trace to stacks, processes, charges and counters, once symbols are known (pure)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import TraceCounters
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import MAX_COMM_LENGTH
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.procfs.text import printable
from memdiag_node.slab.cache import Cache
from memdiag_node.trace import common_tables
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.identity import path_identity
from memdiag_node.trace.pages import tables
from memdiag_node.trace.pages.frame_layout import MAX_ORDER
from memdiag_node.trace.pages.frame_tally import MAX_BLOCKS, OUT_DTYPE, FrameTally
from memdiag_node.trace.pages.result import BLOCK_DTYPE, GROUP_DTYPE, Charge, TracedProcess, TraceResult
from memdiag_node.trace.pages.tables import CLASS_LOST, CLASS_MOVABLE, CLASS_THINNED
from memdiag_node.trace.pages.uses import LISTED, NO_SLAB_PAGES, SlabPages, Uses, uses_of
from memdiag_node.trace.stack_classes import callers, is_vmalloc, page_class
from memdiag_node.trace.stacks import trim

_LIFE_BUCKETS = 4 * 64
_MAX_ALLOCATED = 1 << 34  # of one class: 64 TiB of pages; times 2^15 and the page size it still fits into 63 bits
_NAMED_PAGES = 256
"""Stacks through which so much was allocated are named even if nothing of it is outstanding."""
_SET_ASIDE_NAMES = {
    FrameKind.FREE: "Free",
    FrameKind.SLAB: "Slab",
    FrameKind.PAGE_TABLES: "PageTables",
    FrameKind.HUGETLB: "Hugetlb",
    FrameKind.BALLOON: "Balloon",
    FrameKind.HUGE_ZERO_PAGE: "HugeZeroPage",
    FrameKind.USER_MEMORY: "UserMemory",
}
_KIND_CLASSES = {FrameKind.SLAB: ClassName.SLAB, FrameKind.PAGE_TABLES: ClassName.PAGE_TABLES}
MOVABLE_KERNEL = "MovableKernel"
"""Movable, but not user memory: zsmalloc, some balloons."""


@dataclass(frozen=True, slots=True)
class RawTrace:
    """The tables as they were when the trace ended."""

    infos: npt.NDArray[np.void]
    """CLASS_INFO_DTYPE by class number."""
    stacks: npt.NDArray[np.void]
    """STACK_ENTRY_DTYPE."""
    cgroups: npt.NDArray[np.void]
    """CGROUP_ENTRY_DTYPE."""
    lives: npt.NDArray[np.void]
    """LIFE_ENTRY_DTYPE."""
    retired: Mapping[int, tuple[float, float]]
    """By stack: pages and blocks, scaled, allocated by classes whose number was reused meanwhile."""
    cpus: npt.NDArray[np.void]
    """CPU_DTYPE by CPU."""
    tally: FrameTally
    first_page: int
    struct_page_bytes: int
    page_bytes: int
    slices: int
    slice_seconds: float
    traced_seconds: float
    allocator_pages: int
    """Pages that the page allocator allocated in the window, by its own counters."""
    recursion_misses: int
    """Runs that the kernel refused, without those that another program covered."""
    table_bytes: int
    slab: SlabPages = NO_SLAB_PAGES
    """The caches of slab memory, if they could be looked up."""

    def counter(self, name: str) -> int:
        """A counter's sum over all CPUs."""
        return int(self.cpus[name].sum())


@dataclass(frozen=True, slots=True)
class _Identity:
    """What blocks have in common that are listed as one stack."""

    frames: tuple[str, ...]
    context: int
    memory_class: str
    cache: Cache | None


def missed_runs(recursion_misses: Mapping[str, int], *, nested_allocs: int) -> int:
    """Events that no program saw, from the kernel's count for each program.

    If on_alloc is already running, on_nested_alloc handles the event, and counts it.
    """
    others = sum(count for name, count in recursion_misses.items() if name in {"on_free", "on_pool_hold"})
    return others + max(0, recursion_misses.get("on_alloc", 0) - nested_allocs)


def named_addresses(raw: RawTrace) -> set[int]:
    """Every return address of a stack that has something outstanding, or that allocated much."""
    outstanding = raw.infos["key"]["stack"][raw.tally.by_kind[list(LISTED)].any(axis=0)]
    large = [stack for stack, pages in _allocated_pages(raw).items() if pages >= _NAMED_PAGES]
    wanted = np.union1d(outstanding, np.array(large, outstanding.dtype))
    rows = raw.stacks[np.isin(raw.stacks["key"], wanted)]["value"]["address"]
    return set(np.unique(rows).tolist()) - {0}


def _allocated_pages(raw: RawTrace) -> dict[int, float]:
    """By stack, all pages that were recorded in the window, scaled, freed or not."""
    used = raw.infos[raw.infos["allocated_pages"] > 0]
    scaled = np.minimum(used["allocated_pages"], _MAX_ALLOCATED) * np.exp2(
        np.minimum(used["key"]["level"], common_tables.MAX_LEVEL).astype(np.float64)
    )
    stacks, where = np.unique(used["key"]["stack"], return_inverse=True)
    pages = np.bincount(where.reshape(-1), scaled, minlength=len(stacks))
    result = dict(zip(stacks.tolist(), pages.tolist(), strict=True))
    for stack, (retired, _) in raw.retired.items():
        result[stack] = result.get(stack, 0.0) + retired
    return result


def _vmalloc_pages(raw: RawTrace, symbols: Mapping[int, str]) -> float:
    """Of `_allocated_pages`, those of vmalloc."""
    allocated = _allocated_pages(raw)
    return sum(
        allocated[int(entry["key"])]
        for entry in raw.stacks
        if allocated.get(int(entry["key"]), 0.0) >= _NAMED_PAGES
        and is_vmalloc([symbols.get(address, "") for address in entry["value"]["address"].tolist() if address])
    )


def decode(raw: RawTrace, symbols: Mapping[int, str], contexts: npt.NDArray[np.uint8]) -> TraceResult:
    """Combine the tables: stacks folded and sorted, with the blocks and groups that refer to them.

    `symbols` has a text for each of `named_addresses`; `contexts` a ContextCode for each of `raw.stacks`.
    """
    uses = uses_of(raw.infos, raw.tally, raw.slab)
    stack_of, identities = _fold(raw, symbols, contexts, uses)
    stack_bytes = np.bincount(stack_of, uses.frames * uses.weight, minlength=len(identities))
    in_order = np.argsort(-stack_bytes, kind="stable")
    rank = np.empty_like(in_order)
    rank[in_order] = np.arange(len(in_order))
    stack_of = rank[stack_of]
    identities = [identities[old] for old in in_order.tolist()]
    context_of = np.array([one.context for one in identities], np.uint8)
    memory_classes = [one.memory_class for one in identities]
    stack_of_class = _stack_of_class(uses, stack_of)
    process_of, processes = _processes(raw, stack_of_class, context_of)
    groups = _groups(raw, uses, stack_of, process_of, context_of)
    key = raw.infos["key"]
    hash_to_stack = {int(h): int(s) for h, s in zip(key["stack"], stack_of_class, strict=True) if s >= 0}
    outstanding_bytes, outstanding_blocks = _outstanding(raw, groups, memory_classes)
    return TraceResult(
        blocks=_decoded_blocks(raw, uses, stack_of, process_of, context_of),
        groups=np.concatenate((groups, _retired_groups(raw, hash_to_stack, context_of))),
        stacks=[one.frames for one in identities],
        memory_classes=memory_classes,
        caches=[one.cache for one in identities],
        lives=_lives(raw, hash_to_stack, len(identities)),
        processes=processes,
        charges=_charges(raw),
        counters=_counters(raw, groups, memory_classes),
        slices=raw.slices,
        slice_seconds=raw.slice_seconds,
        traced_seconds=raw.traced_seconds,
        page_bytes=raw.page_bytes,
        struct_page_bytes=raw.struct_page_bytes,
        first_page=raw.first_page,
        outstanding_bytes=outstanding_bytes,
        outstanding_blocks=outstanding_blocks,
        vmalloc_page_bytes=round(_vmalloc_pages(raw, symbols) * raw.page_bytes),
    )


def _fold(
    raw: RawTrace, symbols: Mapping[int, str], contexts: npt.NDArray[np.uint8], uses: Uses
) -> tuple[npt.NDArray[np.int64], list[_Identity]]:
    """For each use the number of its folded stack; and the folded stacks."""
    hashes = raw.infos["key"]["stack"][uses.number]
    wanted = set(np.unique(hashes).tolist())
    rows = {
        int(entry["key"]): (entry["value"]["address"][: entry["value"]["frames"]].tolist(), int(context))
        for entry, context in zip(raw.stacks, contexts, strict=True)
        if int(entry["key"]) in wanted
    }
    pairs = np.zeros(len(hashes), [("stack", "<u8"), ("kind", "<i8"), ("cache", "<i8")])
    pairs["stack"], pairs["kind"], pairs["cache"] = hashes, uses.kind, uses.cache
    unique, where = np.unique(pairs, return_inverse=True)
    numbers: dict[_Identity, int] = {}
    of_unique = np.zeros(len(unique), np.int64)
    for index, (stack_hash, kind, cache) in enumerate(unique.tolist()):
        addresses, context = rows.get(stack_hash, ([], int(ContextCode.UNKNOWN)))
        frames = trim([symbols[address] for address in addresses if address])
        memory_class, frames = callers(frames, _KIND_CLASSES.get(kind) or page_class(frames))
        identity = _Identity(frames, context, memory_class.value, uses.caches[cache] if cache >= 0 else None)
        of_unique[index] = numbers.setdefault(identity, len(numbers))
    return of_unique[where.reshape(-1)], list(numbers)


def _stack_of_class(uses: Uses, stack_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The stack of most of each class's frames; -1 if nothing of it is outstanding."""
    result = np.full(tables.CLASSES, -1, np.int64)
    ascending = np.argsort(uses.frames, kind="stable")
    result[uses.number[ascending]] = stack_of[ascending]
    return result


def _processes(
    raw: RawTrace, stack_of: npt.NDArray[np.int64], context_of: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], list[TracedProcess]]:
    """For each class the number of its process, -1 for none; and the processes."""
    names = {int(entry["key"]): entry["value"] for entry in raw.cgroups}
    process_of = np.full(tables.CLASSES, -1, np.int64)
    numbers: dict[TracedProcess, int] = {}
    identities: dict[int, ContainerIdentity] = {}
    for number in np.flatnonzero((stack_of >= 0) & (raw.infos["key"]["tgid"] > 0)).tolist():
        if context_of[stack_of[number]] != ContextCode.PROCESS:
            continue
        info = raw.infos[number]
        cgroup = int(info["cgroup"])
        if cgroup not in identities:
            identities[cgroup] = path_identity(names[cgroup]) if cgroup in names else ContainerIdentity("", "")
        identity = identities[cgroup]
        process = TracedProcess(
            int(info["key"]["tgid"]),
            printable(bytes(info["comm"]), MAX_COMM_LENGTH),
            identity.container_id,
            identity.pod_uid,
        )
        process_of[number] = numbers.setdefault(process, len(numbers))
    return process_of, list(numbers)


def _charges(raw: RawTrace) -> list[Charge]:
    """The memory charged to containers, from the cgroups that were seen allocating."""
    names = {int(entry["key"]): entry["value"] for entry in raw.cgroups}
    frames: dict[ContainerIdentity, int] = {}
    for inode, count in raw.tally.charged.items():
        identity = path_identity(names[inode]) if inode in names else ContainerIdentity("", "")
        if identity.container_id or identity.pod_uid:
            frames[identity] = frames.get(identity, 0) + count
    charges = [Charge(one.container_id, one.pod_uid, count * raw.page_bytes) for one, count in frames.items()]
    return sorted(charges, key=lambda charge: -charge.size_bytes)


def _groups(
    raw: RawTrace,
    uses: Uses,
    stack_of: npt.NDArray[np.int64],
    process_of: npt.NDArray[np.int64],
    context_of: npt.NDArray[np.uint8],
) -> npt.NDArray[np.void]:
    infos = raw.infos[uses.number]
    groups = np.zeros(len(infos), GROUP_DTYPE)
    groups["stack"] = stack_of
    groups["process"] = process_of[uses.number]
    groups["order"] = infos["key"]["order"]
    groups["slice"] = np.minimum(infos["key"]["slice"], raw.slices - 1)
    groups["context"] = context_of[stack_of]
    groups["is_direct"] = uses.kind == FrameKind.DIRECT
    groups["weight"] = uses.weight
    groups["frames"] = uses.frames
    groups["blocks"] = uses.blocks
    # What a class allocated is not known by use: it counts where most of it is.
    is_main = np.zeros(len(groups), np.bool_)
    _, last = np.unique(uses.number[::-1], return_index=True)
    is_main[len(groups) - 1 - last] = True
    groups["allocated_pages"] = np.minimum(infos["allocated_pages"], _MAX_ALLOCATED) * is_main
    groups["allocated_blocks"] = np.minimum(infos["allocated_blocks"], _MAX_ALLOCATED) * is_main
    return groups


def _retired_groups(
    raw: RawTrace, hash_to_stack: Mapping[int, int], context_of: npt.NDArray[np.uint8]
) -> npt.NDArray[np.void]:
    """What each stack allocated, and freed, through classes that were removed."""
    rows = [(hash_to_stack[key], *totals) for key, totals in raw.retired.items() if key in hash_to_stack]
    groups = np.zeros(len(rows), GROUP_DTYPE)
    if rows:
        groups["stack"], groups["allocated_pages"], groups["allocated_blocks"] = np.array(rows).T
        groups["context"] = context_of[groups["stack"]]
    groups["process"] = -1
    groups["weight"] = 1.0
    return groups


def _lives(raw: RawTrace, hash_to_stack: Mapping[int, int], stacks: int) -> list[dict[int, int]]:
    lives: list[dict[int, int]] = [{} for _ in range(stacks)]
    for entry in raw.lives:
        stack = hash_to_stack.get(int(entry["key"]["stack"]), -1)
        bucket = int(entry["key"]["bucket"])
        if stack >= 0 and bucket < _LIFE_BUCKETS:
            lives[stack][bucket] = lives[stack].get(bucket, 0) + int(entry["value"])
    return lives


def _decoded_blocks(
    raw: RawTrace,
    uses: Uses,
    stack_of: npt.NDArray[np.int64],
    process_of: npt.NDArray[np.int64],
    context_of: npt.NDArray[np.uint8],
) -> npt.NDArray[np.void]:
    """The direct blocks for the join; of more than MAX_BLOCKS only every n-th, with n times its weight."""
    total = sum(len(part) for part in raw.tally.parts)
    stride = -(-total // MAX_BLOCKS) or 1
    parts = [np.zeros(0, OUT_DTYPE), *(part[::stride] for part in raw.tally.parts)]
    out = np.concatenate(parts)
    numbers = out["number"]
    is_direct = uses.kind == FrameKind.DIRECT
    stack_of_number = np.full(tables.CLASSES, -1, np.int64)
    weight_of_number = np.ones(tables.CLASSES)
    stack_of_number[uses.number[is_direct]] = stack_of[is_direct]
    weight_of_number[uses.number[is_direct]] = uses.weight[is_direct]
    stack = stack_of_number[numbers]
    blocks = np.zeros(len(out), BLOCK_DTYPE)
    blocks["page"] = np.uint64(raw.first_page) + out["frame"].astype(np.uint64) * np.uint64(raw.struct_page_bytes)
    blocks["order"] = raw.infos["key"]["order"][numbers]
    blocks["slice"] = np.minimum(raw.infos["key"]["slice"][numbers], raw.slices - 1)
    blocks["context"] = context_of[stack] if len(context_of) else 0
    blocks["frames"] = out["frames"]
    blocks["stack"] = stack
    blocks["process"] = process_of[numbers]
    blocks["weight"] = weight_of_number[numbers] * stride
    return blocks


def _frames_by_class(raw: RawTrace, groups: npt.NDArray[np.void], memory_classes: list[str]) -> dict[str, float]:
    """Direct frames by memory class."""
    groups = groups[groups["is_direct"]]
    by_stack = np.bincount(groups["stack"], groups["frames"] * groups["weight"], minlength=len(memory_classes))
    direct = raw.tally.by_kind[FrameKind.DIRECT]
    frames: dict[str, float] = {ClassName.ALLOC_PAGE: float(direct[CLASS_LOST])}
    is_thinned = groups["weight"] > 1
    for order in range(MAX_ORDER + 1):
        if not (is_thinned & (groups["order"] == order)).any():
            frames[ClassName.ALLOC_PAGE] += float(direct[CLASS_THINNED + order])  # none of its kind was recorded
    for stack, name in enumerate(memory_classes):
        frames[name] = frames.get(name, 0.0) + float(by_stack[stack])
    return frames


def _outstanding(raw: RawTrace, groups: npt.NDArray[np.void], memory_classes: list[str]) -> tuple[int, int]:
    """Bytes and blocks of allocpage."""
    frames = _frames_by_class(raw, groups, memory_classes)[ClassName.ALLOC_PAGE]
    is_alloc_page = np.array([name == ClassName.ALLOC_PAGE for name in memory_classes], bool)[groups["stack"]]
    blocks = float((groups["blocks"] * groups["weight"])[is_alloc_page].sum())
    return round(frames * raw.page_bytes), round(blocks)


def _counters(raw: RawTrace, groups: npt.NDArray[np.void], memory_classes: list[str]) -> TraceCounters:
    page_bytes = raw.page_bytes
    not_movable = raw.tally.by_kind.sum(axis=1) - raw.tally.by_kind[:, CLASS_MOVABLE]
    set_aside = {name: int(not_movable[kind]) * page_bytes for kind, name in _SET_ASIDE_NAMES.items()}
    set_aside[MOVABLE_KERNEL] = int(raw.tally.by_kind[FrameKind.DIRECT, CLASS_MOVABLE]) * page_bytes
    for name, frames in _frames_by_class(raw, groups, memory_classes).items():
        if name != ClassName.ALLOC_PAGE:
            set_aside[name] = set_aside.get(name, 0) + round(frames * page_bytes)
    # Pages seen only by a page pool's own tracepoint are events too, and thinned out like the others.
    events, movable = raw.counter("events") + raw.counter("pool_events"), raw.counter("movable_events")
    thinned = raw.counter("thinned_events")
    traced_pages = raw.counter("pages") + raw.counter("pool_pages")
    return TraceCounters(
        events_seen=events,
        events_filtered=movable,
        events_sampled_out=thinned,
        large_sampled_out=raw.counter("thinned_large_events"),
        lost_stacks=raw.counter("lost_stacks"),
        lost_records=raw.counter("lost_blocks"),
        lost_record_bytes=int(raw.tally.by_kind[FrameKind.DIRECT][CLASS_LOST]) * page_bytes,
        unnamed_blocks=raw.counter("unnamed_blocks"),
        lost_cgroups=raw.counter("lost_cgroups"),
        missed_runs=raw.recursion_misses + raw.counter("interrupted"),
        untraced_bytes=(raw.allocator_pages - traced_pages) * page_bytes,
        movable_outstanding_bytes=int(raw.tally.by_kind[:, CLASS_MOVABLE].sum()) * page_bytes,
        set_aside_bytes={name: size for name, size in sorted(set_aside.items()) if size > 0},
        program_seconds=_program_seconds(raw),
        sampled_share=1 - thinned / (events - movable) if events > movable else 1.0,
        table_bytes=raw.table_bytes,
    )


def _program_seconds(raw: RawTrace) -> float:
    """The run time of the programs: the mean of the runs that timed themselves, times the number of runs."""
    total_ns = 0.0
    for runs, timed, timed_ns in (("events", "timed_events", "timed_ns"), ("frees", "timed_frees", "timed_free_ns")):
        if raw.counter(timed):
            total_ns += raw.counter(timed_ns) / raw.counter(timed) * raw.counter(runs)
    return total_ns / 1e9
