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
from memdiag_node.trace import tables
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.frame_layout import MAX_ORDER
from memdiag_node.trace.identity import path_identity
from memdiag_node.trace.frame_tally import MAX_BLOCKS, OUT_DTYPE, FrameTally
from memdiag_node.trace.result import BLOCK_DTYPE, GROUP_DTYPE, Charge, TracedProcess, TraceResult
from memdiag_node.trace.stacks import memory_class, trim
from memdiag_node.trace.tables import CLASS_LOST, CLASS_MOVABLE, CLASS_THINNED, MAX_LEVEL

_LIFE_BUCKETS = 4 * 64
_MAX_ALLOCATED = 1 << 34  # of one class: 64 TiB of pages; times 2^15 and the page size it still fits into 63 bits
_SET_ASIDE_NAMES = {
    FrameKind.FREE: "Free",
    FrameKind.SLAB: "Slab",
    FrameKind.PAGE_TABLES: "PageTables",
    FrameKind.HUGETLB: "Hugetlb",
    FrameKind.BALLOON: "Balloon",
    FrameKind.HUGE_ZERO_PAGE: "HugeZeroPage",
    FrameKind.USER_MEMORY: "UserMemory",
}
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

    def counter(self, name: str) -> int:
        """A counter's sum over all CPUs."""
        return int(self.cpus[name].sum())


def missed_runs(recursion_misses: Mapping[str, int], *, nested_allocs: int) -> int:
    """Events that no program saw, from the kernel's count for each program.

    If on_alloc is already running, on_nested_alloc handles the event, and counts it.
    """
    others = sum(count for name, count in recursion_misses.items() if name in {"on_free", "on_pool_hold"})
    return others + max(0, recursion_misses.get("on_alloc", 0) - nested_allocs)


def outstanding_addresses(raw: RawTrace) -> set[int]:
    """Every return address of a stack that has something outstanding."""
    wanted = np.unique(raw.infos["key"]["stack"][raw.tally.by_kind[FrameKind.DIRECT] > 0])
    rows = raw.stacks[np.isin(raw.stacks["key"], wanted)]["value"]["address"]
    return set(np.unique(rows).tolist()) - {0}


def decode(raw: RawTrace, symbols: Mapping[int, str], contexts: npt.NDArray[np.uint8]) -> TraceResult:
    """Combine the tables: stacks folded and sorted, with the blocks and groups that refer to them.

    `symbols` has a text for each of `outstanding_addresses`; `contexts` a ContextCode for each of `raw.stacks`.
    """
    direct = np.where(raw.infos["allocated_pages"] > 0, raw.tally.by_kind[FrameKind.DIRECT], 0)
    key = raw.infos["key"]
    weights = class_weights(key, direct, raw.tally.by_kind[FrameKind.DIRECT])
    stack_of, texts = _fold(raw, symbols, contexts, direct)
    stack_bytes = np.zeros(len(texts))
    used = (stack_of >= 0) & (direct > 0)
    np.add.at(stack_bytes, stack_of[used], direct[used] * weights[used])
    in_order = np.argsort(-stack_bytes, kind="stable")
    rank = np.empty_like(in_order)
    rank[in_order] = np.arange(len(in_order))
    stack_of = np.where(stack_of >= 0, rank[stack_of], -1) if len(rank) else stack_of
    stacks = [texts[old][0] for old in in_order.tolist()]
    context_of = np.array([texts[old][1] for old in in_order.tolist()], np.uint8)
    memory_classes = [memory_class(frames) for frames in stacks]
    process_of, processes = _processes(raw, stack_of, context_of)
    groups = _groups(raw, stack_of, process_of, context_of, weights, direct)
    hash_to_stack = {int(h): int(s) for h, s in zip(key["stack"], stack_of, strict=True) if s >= 0}
    outstanding_bytes, outstanding_blocks = _outstanding(raw, groups, memory_classes)
    return TraceResult(
        blocks=_decoded_blocks(raw, stack_of, process_of, context_of, weights),
        groups=np.concatenate((groups, _retired_groups(raw, hash_to_stack, context_of))),
        stacks=stacks,
        memory_classes=memory_classes,
        lives=_lives(raw, hash_to_stack, len(stacks)),
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
    )


def _fold(
    raw: RawTrace,
    symbols: Mapping[int, str],
    contexts: npt.NDArray[np.uint8],
    direct: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], list[tuple[tuple[str, ...], int]]]:
    """For each class the number of its folded stack, -1 if nothing is outstanding; and the folded stacks."""
    hashes = raw.infos["key"]["stack"]
    outstanding = set(np.unique(hashes[direct > 0]).tolist())
    rows = {
        int(entry["key"]): (entry["value"]["address"][: entry["value"]["frames"]].tolist(), int(context))
        for entry, context in zip(raw.stacks, contexts, strict=True)
        if int(entry["key"]) in outstanding
    }
    numbers: dict[tuple[tuple[str, ...], int], int] = {}
    by_hash: dict[int, int] = {}
    for stack_hash in sorted(outstanding):
        addresses, context = rows.get(stack_hash, ([], int(ContextCode.UNKNOWN)))
        text = trim([symbols[address] for address in addresses if address])
        by_hash[stack_hash] = numbers.setdefault((text, context), len(numbers))
    unique, inverse = np.unique(hashes, return_inverse=True)
    lookup = np.array([by_hash.get(stack_hash, -1) for stack_hash in unique.tolist()], np.int64)
    stack_of = lookup[inverse.reshape(-1)]
    stack_of[raw.infos["allocated_pages"] == 0] = -1
    return stack_of, list(numbers)


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


def _groups(  # noqa: PLR0917 - one array for each property of a class
    raw: RawTrace,
    stack_of: npt.NDArray[np.int64],
    process_of: npt.NDArray[np.int64],
    context_of: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.float64],
    direct: npt.NDArray[np.int64],
) -> npt.NDArray[np.void]:
    numbers = np.flatnonzero(stack_of >= 0)
    key = raw.infos["key"][numbers]
    groups = np.zeros(len(numbers), GROUP_DTYPE)
    groups["stack"] = stack_of[numbers]
    groups["process"] = process_of[numbers]
    groups["order"] = key["order"]
    groups["slice"] = np.minimum(key["slice"], raw.slices - 1)
    groups["context"] = context_of[stack_of[numbers]]
    groups["weight"] = weights[numbers]
    groups["frames"] = direct[numbers]
    groups["blocks"] = raw.tally.blocks[numbers]
    groups["allocated_pages"] = np.minimum(raw.infos["allocated_pages"][numbers], _MAX_ALLOCATED)
    groups["allocated_blocks"] = np.minimum(raw.infos["allocated_blocks"][numbers], _MAX_ALLOCATED)
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
    stack_of: npt.NDArray[np.int64],
    process_of: npt.NDArray[np.int64],
    context_of: npt.NDArray[np.uint8],
    weights: npt.NDArray[np.float64],
) -> npt.NDArray[np.void]:
    """The blocks for the join; of more than MAX_BLOCKS only every n-th, with n times its weight."""
    total = sum(len(part) for part in raw.tally.parts)
    stride = -(-total // MAX_BLOCKS) or 1
    parts = [np.zeros(0, OUT_DTYPE), *(part[::stride] for part in raw.tally.parts)]
    out = np.concatenate(parts)
    numbers = out["number"]
    stack = stack_of[numbers]
    blocks = np.zeros(len(out), BLOCK_DTYPE)
    blocks["page"] = np.uint64(raw.first_page) + out["frame"].astype(np.uint64) * np.uint64(raw.struct_page_bytes)
    blocks["order"] = raw.infos["key"]["order"][numbers]
    blocks["slice"] = np.minimum(raw.infos["key"]["slice"][numbers], raw.slices - 1)
    blocks["context"] = context_of[stack] if len(context_of) else 0
    blocks["frames"] = out["frames"]
    blocks["stack"] = stack
    blocks["process"] = process_of[numbers]
    blocks["weight"] = weights[numbers] * stride
    return blocks


def class_weights(
    key: npt.NDArray[np.void], direct: npt.NDArray[np.int64], by_class: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The weight of each class. How many frames of each order are in blocks that were not recorded is known."""
    levels = np.minimum(key["level"], MAX_LEVEL)
    weights = np.ones(len(key))
    for order in np.unique(key["order"][levels > 0]).tolist():
        is_order = key["order"] == order
        of_order = calibrated_weights(levels[is_order], direct[is_order], int(by_class[CLASS_THINNED + order]))
        weights[is_order] = of_order
    return weights


def calibrated_weights(
    levels: npt.NDArray[np.uint8], frames: npt.NDArray[np.int64], thinned_frames: int
) -> npt.NDArray[np.float64]:
    """The number of blocks that a recorded block of each class represents, itself included.

    One in 2^level was recorded. The number of outstanding frames of the others is known exactly, but not their stacks.
    So the weights are scaled to match that sum, which removes most of the error of the stacks with most of them.
    """
    unrecorded = np.exp2(levels.astype(np.float64)) - 1
    estimated_frames = float((frames * unrecorded).sum())
    factor = thinned_frames / estimated_frames if estimated_frames else 1.0
    return 1 + unrecorded * factor


def _frames_by_class(raw: RawTrace, groups: npt.NDArray[np.void], memory_classes: list[str]) -> dict[str, float]:
    """Direct frames by memory class."""
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
