"""The page-allocation trace: what kernel code allocated from the page allocator in a window and did not free.

`page_trace.bpf.c` keeps two bytes for each page frame; this module starts it, advances its time slices, keeps its
tables from filling up, and reads them. docs/trace.md explains the design and its costs.
"""

import errno
import mmap
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.page_array import alignment_bytes
from memdiag_node.kernel.programs import ProgramInfo, ProgramInfoLayout
from memdiag_node.kernel.symbols import Symbols
from memdiag_node.procfs.kpageflags import FrameTable, open_frame_table
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.vmstat import parse_allocated_pages
from memdiag_node.resource import Resource
from memdiag_node.slab.lookup import SlabLookup
from memdiag_node.trace import common_tables
from memdiag_node.trace.contexts import ContextCode, Contexts
from memdiag_node.trace.identity import identity_layout, open_symbol_reader
from memdiag_node.trace.idle_entries import CROWDED, IdleEntries
from memdiag_node.trace.pages import tables
from memdiag_node.trace.pages.decode import RawTrace, decode, missed_runs, named_addresses
from memdiag_node.trace.pages.first_page import find_first_page, only_possible_start, traced_own_pages
from memdiag_node.trace.pages.frame_layout import FrameLayout, oversize
from memdiag_node.trace.pages.frame_tally import frames_by_class, tally_frames
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.pages.uses import NO_SLAB_PAGES, SlabPages, sampled_slab_blocks
from memdiag_node.trace.settings import TraceSettings

_SOURCE = Path(__file__).with_suffix(".bpf.c")
_STACKS = 8192
_CGROUPS = 2048
_BIRTHS = 16384
_ALLOC, _FREE, _POOL_HOLD = "mm_page_alloc", "mm_page_free", "page_pool_state_hold"
# A CPU that has just looked up a class may still mark a block with it after it was removed.
_REST_SECONDS = 0.5
# Scanning all frames for classes in use may take this share of the runner's time.
_MAX_LOOKING_SHARE = 0.2
_RESTING_DTYPE = np.dtype([("number", "<u4"), ("until", "<f8")])
# How often new stacks are classified. Until then, a stack of an interrupt takes a class for each process that it hits.
_CLASSIFY_SECONDS = 1.0
# on_nested_alloc runs for every event. So it is attached only if interrupts hide more events than this from on_alloc.
_HIDDEN_PER_SECOND = 2
# A program that is detached may still run to its end on another CPU.
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Attached:
    """The loaded programs, and their maps as numpy arrays."""

    bpf: BpfObject
    config: npt.NDArray[Any]
    frames: npt.NDArray[np.uint16]
    infos: npt.NDArray[np.void]

    @classmethod
    def load(cls, defines: Mapping[str, int], layout: FrameLayout, parts: ExitStack) -> Self:
        """Compile for this kernel, with room for its frames; `parts` closes it."""
        counts = {"SECTIONS": layout.sections, "CHUNKS": layout.chunks}
        bpf = parts.enter_context(BpfObject(_SOURCE, {**defines, **counts}, tables.MAPS))
        bpf.view("sections", tables.MAPS["sections"], layout.sections)[:] = layout.index()
        return cls(
            bpf,
            config=bpf.view("config", tables.CONFIG_DTYPE, 1),
            frames=bpf.view("frames", np.dtype("<u2"), layout.entries),
            infos=bpf.view("class_info", tables.CLASS_INFO_DTYPE, tables.CLASSES),
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """The time in which allocations were recorded, once it is over."""

    end: float
    seconds: float
    allocator_pages: int


class PageTrace(Resource):
    """A running trace: attached until `close`, or the end of its context.

    Raises BpfError, BtfError, ProcFormatError or OSError, with what is missing, when it cannot start.
    """

    def __init__(self, settings: TraceSettings, *, roots: HostRoots) -> None:
        self._settings = settings
        self._roots = roots
        self._attached: _Attached | None = None
        self._retired: dict[int, tuple[float, float]] = {}
        self._resting = np.zeros(0, _RESTING_DTYPE)
        self._returned_classes = 0
        self._next_look = 0.0
        self._idle_stacks = IdleEntries(_STACKS, common_tables.STACK_ENTRY_DTYPE)
        self._idle_cgroups = IdleEntries(_CGROUPS, common_tables.CGROUP_ENTRY_DTYPE)
        self._slice = 0
        self._classified = 0.0
        self._hidden_events = 0
        self._sees_nested = False
        self._window: _Window | None = None
        with self._opening() as parts:
            self._start(parts)

    def _start(self, parts: ExitStack) -> None:
        defines = self._read_btf()
        symbol_reader = open_symbol_reader(parts)
        self._symbols = Symbols(symbol_reader.lines if symbol_reader else None)
        self._contexts = Contexts(self._symbols)
        parts.callback(self._forget)
        with ExitStack() as files:
            flags = open_frame_table(self._roots.proc / "kpageflags", files)
            layout = self._layout = self._frame_layout()
            attached = self._attached = _Attached.load(defines, layout, parts)
            _push_numbers(attached.bpf, np.arange(tables.FIRST_CLASS, tables.CLASSES, dtype="<u4"))
            self._first_page = self._find_first_page(attached, flags, layout.end_frame)
        attached.config["first_page"] = self._first_page
        attached.config["end_frame"] = layout.end_frame
        attached.config["budget_permille"] = round(self._settings.cpu_budget_share * 1000)
        for program in ("on_free", "on_alloc", "on_nested_alloc", "on_pool_hold"):
            # Before any is attached: the trace must not find the memory of its own programs.
            attached.bpf.load_raw_tracepoint(program)
        # Frees first: a block whose free was not traced would count as outstanding.
        attached.bpf.attach_raw_tracepoint(_FREE, "on_free")
        self._pages_at_start = self._allocator_pages()
        attached.bpf.attach_raw_tracepoint(_ALLOC, "on_alloc")
        try:
            attached.bpf.attach_raw_tracepoint(_POOL_HOLD, "on_pool_hold")
        except BpfError as error:
            if error.errno != errno.ENOENT:  # a kernel without page pools
                raise
        self._started = time.monotonic()

    def _read_btf(self) -> dict[str, int]:
        """The defines of the programs. The BTF's memory is freed when this returns, before anything is compiled."""
        btf = Btf.load(self._roots.sys)
        self._program_info_layout = ProgramInfoLayout.of(btf)
        self._struct_page_bytes = btf.size_bytes("page")
        return _layout(btf)

    def _forget(self) -> None:
        self._attached = None  # the mappings cannot be closed while its numpy views use them

    def advance(self) -> None:
        """Advance to the current time slice, and keep room in the tables. Call it every quarter of a second."""
        attached = self._running()
        elapsed = time.monotonic() - self._started
        since = elapsed - self._classified
        if since >= _CLASSIFY_SECONDS:
            self._classified = elapsed
            self._look_at_names(attached)
            if not self._sees_nested and self._window is None:
                self._look_for_hidden_events(attached, since)
        due = int(elapsed / self._settings.slice_seconds)
        due = min(due, self._settings.slices - 1)
        if due != self._slice:
            self._slice = due
            attached.config["slice"] = due
            self._forget_births(attached)
        self._make_room(attached)

    def _look_for_hidden_events(self, attached: _Attached, seconds: float) -> None:
        """Attach on_nested_alloc if interrupts allocate while on_alloc runs; `seconds`: since the last look."""
        infos = attached.bpf.program_infos(self._program_info_layout)
        hidden_events = sum(info.recursion_misses for info in infos if info.function == "on_alloc")
        more, self._hidden_events = hidden_events - self._hidden_events, hidden_events
        if more > _HIDDEN_PER_SECOND * seconds:
            attached.bpf.attach_raw_tracepoint(_ALLOC, "on_nested_alloc")
            self._sees_nested = True

    def stop_recording(self) -> None:
        """End the window: new allocations are not recorded, frees still are. Idempotent.

        What is outstanding at the end was then allocated before this call and not freed since. So a block that is seen
        by any scan in between is still the same block at the end.
        """
        self._stop_recording()

    def _stop_recording(self) -> _Window:
        attached = self._running()
        if self._window is not None:
            return self._window
        attached.bpf.detach_raw_tracepoint(_ALLOC)
        attached.bpf.detach_raw_tracepoint(_POOL_HOLD)
        end = time.monotonic()
        self._window = _Window(end, end - self._started, self._allocator_pages() - self._pages_at_start)
        return self._window

    def finish(self, late: Callable[[], bool] = lambda: False, *, lookup: SlabLookup | None = None) -> TraceResult:
        """Stop recording, read the tables, detach, and decode. For `late` and `lookup`, see read_out."""
        try:
            raw = self.read_out(late, lookup=lookup)
            symbols, contexts = self.symbols(raw), self.contexts(raw)  # while the programs still have names
        finally:
            self.close()
        return decode(raw, symbols, contexts)

    def symbols(self, raw: RawTrace) -> dict[int, str]:
        """A text for each address that the decoding needs. Call it before `close`, as with `contexts`."""
        return self._symbols.texts(named_addresses(raw))

    def contexts(self, raw: RawTrace) -> npt.NDArray[np.uint8]:
        """The ContextCode of each stack."""
        return self._contexts.of(raw.stacks["value"]["address"])

    def read_out(self, late: Callable[[], bool] = lambda: False, *, lookup: SlabLookup | None = None) -> RawTrace:
        """Stop recording, and read the tables. The maps last until `close`. For `late`, see tally_frames.

        `lookup` names the slab caches of outstanding pages; without it they have no names.
        """
        attached = self._running()
        bpf = attached.bpf
        window = self._stop_recording()
        time.sleep(max(0.0, window.end + _SETTLE_SECONDS - time.monotonic()))
        infos = np.array(attached.infos)
        with ExitStack() as files:
            flags = open_frame_table(self._roots.proc / "kpageflags", files)
            charges = open_frame_table(self._roots.proc / "kpagecgroup", files)
            tally = tally_frames(
                attached.frames,
                infos["key"]["order"],
                flags.read if flags else lambda _, count: np.zeros(count, np.uint64),
                charges.read if charges else None,
                late=late,
                layout=self._layout,
            )
        slab = NO_SLAB_PAGES
        if lookup:
            blocks = sampled_slab_blocks(tally)
            slab = SlabPages(blocks, lookup.caches_of_frames(blocks["frame"]), lookup.caches)
        bpf.detach_raw_tracepoint(_FREE)
        cpus = bpf.read_per_cpu("cpu", tables.CPU_DTYPE)
        misses = {info.function: info.recursion_misses for info in bpf.program_infos(self._program_info_layout)}
        return RawTrace(
            infos=infos,
            stacks=bpf.read_map("stacks", common_tables.STACK_ENTRY_DTYPE),
            cgroups=bpf.read_map("cgroups", common_tables.CGROUP_ENTRY_DTYPE),
            lives=bpf.read_map("lives", common_tables.LIFE_ENTRY_DTYPE),
            retired=self._retired,
            cpus=cpus,
            tally=tally,
            first_page=self._first_page,
            struct_page_bytes=self._struct_page_bytes,
            page_bytes=mmap.PAGESIZE,
            slices=self._slice + 1,
            slice_seconds=self._settings.slice_seconds,
            traced_seconds=window.seconds,
            allocator_pages=window.allocator_pages,
            recursion_misses=missed_runs(misses, nested_allocs=int(cpus["nested_allocs"].sum())),
            table_bytes=bpf.map_bytes(),
            slab=slab,
        )

    def program_infos(self) -> list[ProgramInfo]:
        """The kernel's own counters of the trace's programs."""
        return self._running().bpf.program_infos(self._program_info_layout)

    def _running(self) -> _Attached:
        if self._attached is None:
            raise BpfError("the trace is not running")
        return self._attached

    def _frame_layout(self) -> FrameLayout:
        meminfo = self._roots.proc / "meminfo"
        layout = FrameLayout(read_memory_map(self._roots.proc, self._roots.sys, page_bytes=mmap.PAGESIZE))
        total_bytes = parse_meminfo(meminfo.read_bytes(), source=str(meminfo)).mem_total_bytes
        problem = oversize(layout, mem_total_bytes=total_bytes, page_bytes=mmap.PAGESIZE)
        if problem:
            raise BpfError(problem)
        return layout

    def _allocator_pages(self) -> int:
        path = self._roots.proc / "vmstat"
        return parse_allocated_pages(path.read_bytes(), source=str(path))

    def _look_at_names(self, attached: _Attached) -> None:
        """Add the context to new stacks: from then on, interrupts name no process. Remove entries without a class."""
        bpf = attached.bpf
        stacks = bpf.read_map("stacks", common_tables.STACK_ENTRY_DTYPE)
        new = stacks[stacks["value"]["context"] == ContextCode.UNKNOWN]
        if len(new):
            new["value"]["context"] = self._contexts.of(new["value"]["address"])
            bpf.update("stacks", new["key"], new["value"])
        used = attached.infos[attached.infos["allocated_pages"] > 0]
        self._idle_stacks.forget(bpf, "stacks", stacks, np.unique(used["key"]["stack"]))
        known = int(bpf.read_per_cpu("cpu", tables.CPU_DTYPE)["known_cgroups"].sum()) - self._idle_cgroups.removed
        if known >= CROWDED * _CGROUPS:
            cgroups = bpf.read_map("cgroups", common_tables.CGROUP_ENTRY_DTYPE)
            self._idle_cgroups.forget(bpf, "cgroups", cgroups, np.unique(used["cgroup"]))

    def _forget_births(self, attached: _Attached) -> None:
        """Remove the oldest births, so that blocks that are never freed do not displace those that are."""
        births = attached.bpf.read_map("births", tables.BIRTH_ENTRY_DTYPE)
        surplus = len(births) - int(CROWDED * _BIRTHS)
        if surplus > 0:
            oldest = np.argsort(births["value"], kind="stable")[:surplus]
            attached.bpf.delete_keys("births", births["key"][oldest])

    def _make_room(self, attached: _Attached) -> None:
        """Reuse the numbers of classes that have nothing outstanding.

        A CPU may be about to mark a block with a class that it looked up before. So the number of a removed class is
        not reused for a while, and then only if it still has no frames.
        """
        bpf = attached.bpf
        taken = int(bpf.read_per_cpu("cpu", tables.CPU_DTYPE)["taken_classes"].sum()) - self._returned_classes
        started = time.monotonic()
        if taken < CROWDED * (tables.CLASSES - tables.reserved_classes()) or started < self._next_look:
            return
        frames = frames_by_class(attached.frames)
        ready = (self._resting["until"] <= started) & (frames[self._resting["number"]] == 0)
        self._return_numbers(attached, self._resting["number"][ready])
        classes = bpf.read_map("classes", tables.CLASS_ENTRY_DTYPE)
        idle = frames[classes["value"]] == 0
        bpf.delete_keys("classes", classes["key"][idle])
        removed = np.zeros(int(idle.sum()), _RESTING_DTYPE)
        removed["number"], removed["until"] = classes["value"][idle], time.monotonic() + _REST_SECONDS
        self._resting = np.concatenate((self._resting[~ready], removed))
        self._next_look = started + (time.monotonic() - started) / _MAX_LOOKING_SHARE

    def _return_numbers(self, attached: _Attached, numbers: npt.NDArray[np.uint32]) -> None:
        """Make the numbers of removed classes available again; what they allocated stays counted by stack."""
        infos = attached.infos[numbers]
        weights = np.exp2(infos["key"]["level"].astype(np.float64))
        stacks, where = np.unique(infos["key"]["stack"], return_inverse=True)
        pages = np.bincount(where.reshape(-1), weights * infos["allocated_pages"], minlength=len(stacks))
        blocks = np.bincount(where.reshape(-1), weights * infos["allocated_blocks"], minlength=len(stacks))
        for stack, more_pages, more_blocks in zip(stacks.tolist(), pages.tolist(), blocks.tolist(), strict=True):
            old_pages, old_blocks = self._retired.get(stack, (0.0, 0.0))
            self._retired[stack] = old_pages + more_pages, old_blocks + more_blocks
        attached.infos[numbers] = np.zeros(1, tables.CLASS_INFO_DTYPE)
        _push_numbers(attached.bpf, numbers)
        self._returned_classes += len(numbers)

    def _find_first_page(self, attached: _Attached, flags: FrameTable | None, frame_count: int) -> int:
        own = attached.bpf.view("own_pages", np.dtype("<u8"), tables.OWN_PAGES + 1)
        attached.config["own_pid"] = os.getpid()
        own_pages = traced_own_pages(attached.bpf, own, tracepoint=_ALLOC, function="on_own_alloc")
        machine = {"frame_count": frame_count, "struct_page_bytes": self._struct_page_bytes}
        if flags is None:
            return only_possible_start(own_pages, **machine)
        return find_first_page(own_pages, flags.read, alignment=alignment_bytes(), **machine)


def _push_numbers(bpf: BpfObject, numbers: npt.NDArray[np.uint32]) -> None:
    """Put class numbers back, each in the queue that it belongs to."""
    is_reserved = numbers >= tables.CLASSES - tables.reserved_classes()
    bpf.push("spare_classes", numbers[~is_reserved])
    bpf.push("reserve_classes", numbers[is_reserved])


def _layout(btf: Btf) -> dict[str, int]:
    """The defines of page_trace.bpf.c: offsets of this kernel, and the sizes of its own tables."""
    pool_order = "p.order" if btf.has_field("page_pool", "p.order") else ""
    return {
        **identity_layout(btf),
        "STRUCT_PAGE_BYTES": btf.size_bytes("page"),
        "MIGRATE_MOVABLE": btf.enum_value("MIGRATE_MOVABLE"),
        **tables.NUMBERS_IN_C,
        "CLASSES": tables.CLASSES,
        "RESERVE": tables.reserved_classes(),
        "STACKS": _STACKS,
        "CGROUPS": _CGROUPS,
        "BIRTHS": _BIRTHS,
        "POOL_ORDER": btf.offset_bytes("page_pool", pool_order) if pool_order else 0,
    }
