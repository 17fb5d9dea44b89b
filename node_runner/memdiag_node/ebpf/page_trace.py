"""The page-allocation trace: what kernel code took from the page allocator in a window and did not give back.

`page_trace.bpf.c` keeps two bytes for each page frame; this module starts it, moves its time slices, keeps its tables
from filling up, and reads it out. docs/trace.md explains the design and its costs.
"""

import errno
import mmap
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from memdiag_node.analyze.traced import ContextCode, TraceResult
from memdiag_node.ebpf import trace_tables as tables
from memdiag_node.ebpf.btf import Btf
from memdiag_node.ebpf.first_page import alignment_bytes, find_first_page, only_possible_start, traced_own_pages
from memdiag_node.ebpf.loader import BpfError, BpfObject, ProgramInfo, ProgramInfoLayout
from memdiag_node.ebpf.symbols import SymbolReader, Symbols
from memdiag_node.ebpf.trace_tables import RawTrace
from memdiag_node.host import HostRoots
from memdiag_node.procfs.kpageflags import FrameTable, open_frame_table, parse_frame_count
from memdiag_node.procfs.pgalloc import parse_allocated_pages

MAX_SLICES = 64

_SOURCE = "page_trace.bpf.c"
_STACKS = 8192
_BIRTHS = 16384
_ALLOC, _FREE, _POOL_HOLD = "mm_page_alloc", "mm_page_free", "page_pool_state_hold"
# Tables are made smaller by what nothing uses any more from this share of their room on.
_CROWDED = 0.5
# How often new stacks are looked at. Until then, a stack of an interrupt takes a class for each process that it hits.
_TELL_SECONDS = 1.0
# A program that is detached may still run to its end on another CPU.
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """How to trace."""

    duration_seconds: float
    """The planned window; its slices follow from it. A trace that goes on for longer puts the rest in the last one."""
    slices: int = 20
    cpu_budget_share: float = 0.05
    """Of each CPU's time, for recording; above it, order-0 allocations are thinned out. 0: never."""

    def __post_init__(self) -> None:
        if not 0 < self.slices <= MAX_SLICES or self.duration_seconds <= 0 or not 0 <= self.cpu_budget_share <= 1:
            raise ValueError(f"a trace needs a positive duration, 1 to {MAX_SLICES} slices, a budget of 0 to 1: {self}")

    @property
    def slice_seconds(self) -> float:
        """The length of a slice."""
        return self.duration_seconds / self.slices


@dataclass(frozen=True, slots=True)
class _Attached:
    """The loaded programs, and their maps as numpy sees them."""

    bpf: BpfObject
    config: npt.NDArray[Any]
    frames: npt.NDArray[np.uint16]
    infos: npt.NDArray[np.void]

    @classmethod
    def load(cls, layout: Mapping[str, int], frame_count: int) -> Self:
        """Compile for this kernel, with room for its frames."""
        chunks = -(-frame_count // tables.CHUNK_FRAMES)
        bpf = BpfObject(_SOURCE, {**layout, "CHUNKS": chunks})
        try:
            return cls(
                bpf,
                config=_view(bpf, "config", tables.CONFIG_DTYPE, 1),
                frames=_view(bpf, "frames", np.dtype("<u2"), chunks * tables.CHUNK_FRAMES),
                infos=_view(bpf, "class_info", tables.CLASS_INFO_DTYPE, tables.CLASSES),
            )
        except BaseException:
            bpf.close()
            raise


class PageTrace:
    """A running trace: attached while the context lasts, and detached whatever ends it.

    Raises BpfError, BtfError, ProcFormatError or OSError, with what is missing, when it cannot start.
    """

    def __init__(self, settings: TraceSettings, *, btf: Btf, roots: HostRoots) -> None:
        # What is needed of `btf` is taken here, so that it need not stay in memory.
        self._settings = settings
        self._layout = _layout(btf)
        self._program_info_layout = ProgramInfoLayout.of(btf)
        self._roots = roots
        self._struct_page_bytes = btf.size_bytes("page")
        self._attached: _Attached | None = None
        self._symbol_reader: SymbolReader | None = None
        self._retired: dict[int, tuple[float, float]] = {}
        self._unused = np.zeros(0, np.uint32)
        self._slice = 0
        self._told = 0.0

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach and free everything. Idempotent."""
        if self._attached is not None:
            self._attached.bpf.close()
            self._attached = None
        if self._symbol_reader is not None:
            self._symbol_reader.close()
            self._symbol_reader = None

    def _start(self) -> None:
        self._symbol_reader = _open_symbol_reader()
        self._symbols = Symbols(self._symbol_reader.lines if self._symbol_reader else None)
        with ExitStack() as files:
            flags = open_frame_table(self._roots.proc / "kpageflags", files)
            frame_count = flags.frame_count() if flags else self._frame_count_of_zones()
            attached = self._attached = _Attached.load(self._layout, frame_count)
            attached.bpf.push("spare_classes", np.arange(tables.FIRST_CLASS, tables.CLASSES, dtype="<u4"))
            self._first_page = self._find_first_page(attached, flags, frame_count)
        attached.config["first_page"] = self._first_page
        attached.config["frames"] = frame_count
        attached.config["budget_permille"] = round(self._settings.cpu_budget_share * 1000)
        for program in ("on_free", "on_alloc", "on_pool_hold"):
            # Before any is attached: the trace is not to find the memory of its own programs.
            attached.bpf.load_raw_tracepoint(program)
        # Frees first: a block whose free nobody watched would count as outstanding.
        attached.bpf.attach_raw_tracepoint(_FREE, "on_free")
        self._pages_at_start = self._allocator_pages()
        attached.bpf.attach_raw_tracepoint(_ALLOC, "on_alloc")
        try:
            attached.bpf.attach_raw_tracepoint(_POOL_HOLD, "on_pool_hold")
        except BpfError as error:
            if error.errno != errno.ENOENT:  # a kernel without page pools
                raise
        self._started = time.monotonic()

    def advance(self) -> None:
        """Move on to the time slice that is due, and keep room in the tables. To be called about once a second."""
        attached = self._running()
        elapsed = time.monotonic() - self._started
        if elapsed - self._told >= _TELL_SECONDS:
            self._told = elapsed
            self._tell_contexts(attached)
        due = int(elapsed / self._settings.slice_seconds)
        due = min(due, self._settings.slices - 1)
        if due != self._slice:
            self._slice = due
            attached.config["slice"] = due
            self._make_room(attached)

    def finish(self, late: Callable[[], bool] = lambda: False) -> TraceResult:
        """Stop recording, read out, detach, and put it all together. Once it is `late`, see tally_frames."""
        try:
            raw = self.read_out(late)
            symbols, contexts = self.symbols(raw), self.contexts(raw)  # while the programs still have names
        finally:
            self.close()
        return tables.decode(raw, symbols, contexts)

    def symbols(self, raw: RawTrace) -> dict[int, str]:
        """A text for each address that the decoding needs. To be asked for before `close`, as `contexts`."""
        return self._symbols.texts(tables.outstanding_addresses(raw))

    def contexts(self, raw: RawTrace) -> npt.NDArray[np.uint8]:
        """The ContextCode of each stack."""
        return self._symbols.contexts(raw.stacks["value"]["address"])

    def read_out(self, late: Callable[[], bool] = lambda: False) -> RawTrace:
        """Stop recording, and read the tables. The maps last until `close`. Once it is `late`, see tally_frames."""
        attached = self._running()
        bpf = attached.bpf
        bpf.detach_raw_tracepoint(_ALLOC)
        bpf.detach_raw_tracepoint(_POOL_HOLD)
        traced_seconds = time.monotonic() - self._started
        allocator_pages = self._allocator_pages() - self._pages_at_start
        time.sleep(_SETTLE_SECONDS)
        infos = np.array(attached.infos)
        with ExitStack() as files:
            flags = open_frame_table(self._roots.proc / "kpageflags", files)
            charges = open_frame_table(self._roots.proc / "kpagecgroup", files)
            tally = tables.tally_frames(
                attached.frames,
                infos["key"]["order"],
                flags.read if flags else lambda _, count: np.zeros(count, np.uint64),
                charges.read if charges else None,
                late=late,
            )
        bpf.detach_raw_tracepoint(_FREE)
        return RawTrace(
            infos=infos,
            stacks=bpf.read_map("stacks", tables.STACK_ENTRY_DTYPE),
            cgroups=bpf.read_map("cgroups", tables.CGROUP_ENTRY_DTYPE),
            lives=bpf.read_map("lives", tables.LIFE_ENTRY_DTYPE),
            retired=self._retired,
            cpus=bpf.read_per_cpu("cpu", tables.CPU_DTYPE),
            tally=tally,
            first_page=self._first_page,
            struct_page_bytes=self._struct_page_bytes,
            page_bytes=mmap.PAGESIZE,
            slices=self._slice + 1,
            slice_seconds=self._settings.slice_seconds,
            traced_seconds=traced_seconds,
            allocator_pages=allocator_pages,
            recursion_misses=sum(info.recursion_misses for info in bpf.program_infos(self._program_info_layout)),
            table_bytes=bpf.map_bytes(),
        )

    def program_infos(self) -> list[ProgramInfo]:
        """The kernel's own counters of the trace's programs."""
        return self._running().bpf.program_infos(self._program_info_layout)

    def _running(self) -> _Attached:
        if self._attached is None:
            raise BpfError("the trace is not running")
        return self._attached

    def _frame_count_of_zones(self) -> int:
        path = self._roots.proc / "zoneinfo"
        return parse_frame_count(path.read_bytes(), source=str(path))

    def _allocator_pages(self) -> int:
        path = self._roots.proc / "vmstat"
        return parse_allocated_pages(path.read_bytes(), source=str(path))

    def _tell_contexts(self, attached: _Attached) -> None:
        """Add the context to stacks that are new: from then on, interrupts name no process."""
        entries = attached.bpf.read_map("stacks", tables.STACK_ENTRY_DTYPE)
        new = entries[entries["value"]["context"] == ContextCode.UNKNOWN]
        if len(new):
            new["value"]["context"] = self._symbols.contexts(new["value"]["address"])
            attached.bpf.update("stacks", new["key"], new["value"])

    def _make_room(self, attached: _Attached) -> None:
        """Give numbers of classes that have nothing outstanding to new classes, and forget stacks that no class has.

        A class of an earlier slice gets no new blocks, but a CPU may be about to mark one with it. So its number rests
        until the next slice, and goes to another class only if it is still without frames then.
        """
        bpf, infos = attached.bpf, attached.infos
        classes = bpf.read_map("classes", tables.CLASS_ENTRY_DTYPE)
        if len(classes) + len(self._unused) < _CROWDED * tables.CLASSES:
            return
        frames = tables.frames_by_class(attached.frames)
        rested = self._unused[frames[self._unused] == 0]
        for info in infos[rested]:
            pages, blocks = self._retired.get(int(info["key"]["stack"]), (0.0, 0.0))
            weight = 2.0 ** int(info["key"]["level"])
            totals = pages + weight * int(info["allocated_pages"]), blocks + weight * int(info["allocated_blocks"])
            self._retired[int(info["key"]["stack"])] = totals
        infos[rested] = np.zeros(1, tables.CLASS_INFO_DTYPE)
        bpf.push("spare_classes", rested)
        idle = (frames[classes["value"]] == 0) & (classes["key"]["slice"] < self._slice)
        bpf.delete_keys("classes", classes["key"][idle])
        self._unused = np.concatenate((self._unused[frames[self._unused] > 0], classes["value"][idle]))
        stacks = bpf.read_map("stacks", tables.STACK_ENTRY_DTYPE)["key"]
        if len(stacks) >= _CROWDED * _STACKS:
            needed = infos["key"]["stack"][infos["allocated_pages"] > 0]
            bpf.delete_keys("stacks", stacks[~np.isin(stacks, needed)])

    def _find_first_page(self, attached: _Attached, flags: FrameTable | None, frame_count: int) -> int:
        own = _view(attached.bpf, "own_pages", np.dtype("<u8"), tables.OWN_PAGES + 1)
        attached.config["own_pid"] = os.getpid()
        own_pages = traced_own_pages(attached.bpf, own, tracepoint=_ALLOC, function="on_own_alloc")
        machine = {"frame_count": frame_count, "struct_page_bytes": self._struct_page_bytes}
        if flags is None:
            return only_possible_start(own_pages, **machine)
        return find_first_page(own_pages, flags.read, alignment=alignment_bytes(), **machine)


def _open_symbol_reader() -> SymbolReader | None:
    """None where the kernel refuses the program: stacks have no names then, and their bytes are right all the same."""
    try:
        return SymbolReader()
    except BpfError:
        return None


def _view(bpf: BpfObject, name: str, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    return np.frombuffer(bpf.mmap(name, dtype.itemsize * count), dtype, count)


def _layout(btf: Btf) -> dict[str, int]:
    """What page_trace.bpf.c needs to know of this kernel and of its own tables."""
    parent = "parent" if btf.has_field("kernfs_node", "parent") else "__parent"  # renamed in Linux 6.15
    pool_order = "p.order" if btf.has_field("page_pool", "p.order") else ""
    return {
        "STRUCT_PAGE_BYTES": btf.size_bytes("page"),
        "MIGRATE_MOVABLE": btf.enum_value("MIGRATE_MOVABLE"),
        "CLASSES": tables.CLASSES,
        "STACKS": _STACKS,
        "BIRTHS": _BIRTHS,
        "TASK_GROUP_LEADER": btf.offset_bytes("task_struct", "group_leader"),
        "TASK_COMM": btf.offset_bytes("task_struct", "comm"),
        "TASK_CGROUPS": btf.offset_bytes("task_struct", "cgroups"),
        "CSS_SET_MEMORY": btf.offset_bytes("css_set", "subsys") + 8 * btf.enum_value("memory_cgrp_id"),
        "CSS_CGROUP": btf.offset_bytes("cgroup_subsys_state", "cgroup"),
        "CGROUP_NODE": btf.offset_bytes("cgroup", "kn"),
        "NODE_ID": btf.offset_bytes("kernfs_node", "id"),
        "NODE_NAME": btf.offset_bytes("kernfs_node", "name"),
        "NODE_PARENT": btf.offset_bytes("kernfs_node", parent),
        "POOL_ORDER": btf.offset_bytes("page_pool", pool_order) if pool_order else 0,
    }
