"""The trace of objects: slab objects, per-CPU memory and areas of vmalloc that were allocated in a window.

`object_trace.bpf.c` records them, slab objects as a sample; this module starts it, keeps its tables from filling up,
and reads them. docs/trace.md explains the design and its costs.
"""

import errno
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.programs import ProgramInfoLayout
from memdiag_node.kernel.symbols import Symbols
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.resource import Resource
from memdiag_node.slab.cache import Cache
from memdiag_node.trace.contexts import ContextCode, Contexts
from memdiag_node.trace.identity import identity_layout, open_symbol_reader
from memdiag_node.trace.idle_entries import CROWDED, IdleEntries
from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.decode import RawObjects
from memdiag_node.trace.objects.eviction import Evictions
from memdiag_node.trace.objects.sampling import filter_words, large_caches
from memdiag_node.trace.objects.tables import Kind
from memdiag_node.trace.settings import TraceSettings

_SOURCE = Path(__file__).with_suffix(".bpf.c")
# How often new stacks are classified, and tables are cleared.
_CLASSIFY_SECONDS = 1.0
# A program that is detached may still run to its end on another CPU.
_SETTLE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class _Events:
    """Tracepoints of one kind of memory, with the programs for them."""

    kind: Kind
    freed: tuple[tuple[str, str], ...]
    allocated: tuple[tuple[str, str], ...]
    """Of two for the same tracepoint, in both fields, the second is for kernels that refuse the first."""


_EVENTS = (
    _Events(
        Kind.SLAB,
        freed=(
            ("kfree", "on_kfree"),
            ("kmem_cache_free", "on_cache_free"),
            ("kmem_cache_free", "on_kfree"),  # up to Linux 5.11, it does not name the cache
        ),
        allocated=(
            ("kmalloc", "on_kmalloc"),
            ("kmem_cache_alloc", "on_cache_alloc"),
            ("kmalloc_node", "on_kmalloc"),  # up to Linux 6.0
            ("kmem_cache_alloc_node", "on_cache_alloc"),
        ),
    ),
    _Events(
        Kind.PERCPU,
        freed=(("percpu_free_percpu", "on_percpu_free"),),
        allocated=(
            ("percpu_alloc_percpu", "on_percpu_alloc"),
            ("percpu_alloc_percpu", "on_percpu_alloc_without_call_site"),
        ),
    ),
    _Events(
        Kind.VMALLOC,
        freed=(("free_vmap_area_noflush", "on_vmap_area_freed"),),
        allocated=(("alloc_vmap_area", "on_vmap_area"),),
    ),
)
_OPTIONAL = frozenset({"kmalloc_node", "kmem_cache_alloc_node"})


class ObjectTrace(Resource):
    """A trace that is loaded, and runs from `start` until `close` or the end of its context.

    Raises BpfError, BtfError or OSError, with what is missing, when it cannot be loaded.
    """

    def __init__(self, settings: TraceSettings, *, roots: HostRoots) -> None:
        self._settings = settings
        self._idle_stacks = IdleEntries(tables.STACKS, tables.MAPS["stacks"])
        self._idle_cgroups = IdleEntries(tables.CGROUPS, tables.MAPS["cgroups"])
        self._idle_processes = IdleEntries(tables.PROCESSES, tables.MAPS["processes"])
        self._evictions = Evictions(tables.OBJECTS)
        self._dropped = 0
        self._classified = 0.0
        self._ended: float | None = None
        self._tracepoints: list[str] = []
        self.kinds: tuple[Kind, ...] = ()
        """The kinds of memory that this kernel lets us trace, once it runs."""
        with self._opening() as parts:
            self._load(parts, roots)

    def _load(self, parts: ExitStack, roots: HostRoots) -> None:
        btf = Btf.load(roots.sys)
        defines = identity_layout(btf) | tables.NUMBERS_IN_C
        self._program_info_layout = ProgramInfoLayout.of(btf)
        del btf
        symbol_reader = open_symbol_reader(parts)
        self._symbols = Symbols(symbol_reader.lines if symbol_reader else None)
        self._contexts = Contexts(self._symbols)
        bpf = self._bpf = parts.enter_context(BpfObject(_SOURCE, defines, tables.MAPS))
        config = bpf.view("config", tables.CONFIG_DTYPE, 1)
        config["budget_permille"] = round(self._settings.cpu_budget_share * 1000)
        for function in {function for events in _EVENTS for _, function in (*events.freed, *events.allocated)}:
            bpf.load_raw_tracepoint(function)

    def start(self, caches: Sequence[Cache] = ()) -> None:
        """Attach the programs. Raises BpfError when not even slab objects can be traced.

        Of those of `caches` that have large objects, more are recorded. The kernel's own order of arguments says
        whether an object is of one of them (Linux 6.1); before, none is.
        """
        large = large_caches(caches)
        self._bpf.update("large_caches", large["key"], large["value"])
        self._bpf.view("config", tables.CONFIG_DTYPE, 1)["filter"] = filter_words(large["key"])
        self.kinds = tuple(events.kind for events in _EVENTS if self._attach(events))
        self._started = time.monotonic()
        self._started_ns = time.monotonic_ns()

    def _attach(self, events: _Events) -> bool:
        """Attach the programs of one kind, frees first: an object whose free was missed would count as outstanding."""
        try:
            self._attach_each(events.freed)
            self._tracepoints += self._attach_each(events.allocated)
        except BpfError as error:
            if events.kind is Kind.SLAB or error.errno not in (errno.ENOENT, errno.EINVAL):
                raise
            for tracepoint, _ in (*events.allocated, *events.freed):
                self._bpf.detach_raw_tracepoint(tracepoint)
            return False
        return True

    def _attach_each(self, programs: Sequence[tuple[str, str]]) -> list[str]:
        """Attach one program to each tracepoint: the first that the kernel accepts. Returns the tracepoints."""
        attached: list[str] = []
        for number, (tracepoint, function) in enumerate(programs):
            if tracepoint in attached:
                continue
            try:
                self._bpf.attach_raw_tracepoint(tracepoint, function)
            except BpfError as error:
                if tracepoint in _OPTIONAL and error.errno == errno.ENOENT:
                    continue
                has_another = any(other == tracepoint for other, _ in programs[number + 1 :])
                if error.errno == errno.EINVAL and has_another:  # it has fewer arguments on this kernel
                    continue
                raise
            attached.append(tracepoint)
        return attached

    def advance(self) -> None:
        """Keep room in the tables. Call it every quarter of a second."""
        counters = self._counters()
        balance = int(counters["added"].sum()) - int(counters["removed"].sum())
        entries = None
        if balance - self._dropped > CROWDED * tables.OBJECTS:
            entries = self._bpf.read_map("objects", tables.OBJECT_ENTRY_DTYPE)
            surplus = self._evictions.choose(entries, now_ns=time.monotonic_ns())
            self._bpf.delete_keys("objects", surplus)
            self._dropped = balance - (len(entries) - len(surplus))
        if time.monotonic() - self._classified >= _CLASSIFY_SECONDS:
            self._classified = time.monotonic()
            self._look_at_names(counters, entries)

    def _counters(self) -> npt.NDArray[np.void]:
        return self._bpf.read_per_cpu("cpu", tables.CPU_DTYPE)

    def _look_at_names(self, counters: npt.NDArray[np.void], entries: npt.NDArray[np.void] | None) -> None:
        """Add the context to new stacks: from then on, interrupts name no process. Remove entries without an object."""
        bpf = self._bpf
        stacks = bpf.read_map("stacks", tables.MAPS["stacks"])
        new = stacks[stacks["value"]["context"] == ContextCode.UNKNOWN]
        if len(new):
            new["value"]["context"] = self._contexts.of(new["value"]["address"])
            bpf.update("stacks", new["key"], new["value"])
        known_processes = int(counters["known_processes"].sum()) - self._idle_processes.removed
        crowded = len(stacks) >= CROWDED * tables.STACKS or known_processes >= CROWDED * tables.PROCESSES
        if not crowded:
            return
        if entries is None:
            entries = bpf.read_map("objects", tables.OBJECT_ENTRY_DTYPE)
        self._idle_stacks.forget(bpf, "stacks", stacks, np.unique(entries["value"]["stack"]))
        totals = bpf.read_map("totals", tables.TOTALS_ENTRY_DTYPE)
        bpf.delete_keys("totals", totals["key"][~np.isin(totals["key"], stacks["key"])])
        processes = bpf.read_map("processes", tables.PROCESS_ENTRY_DTYPE)
        self._idle_processes.forget(bpf, "processes", processes, np.unique(entries["value"]["tgid"]))
        cgroups = bpf.read_map("cgroups", tables.MAPS["cgroups"])
        self._idle_cgroups.forget(bpf, "cgroups", cgroups, np.unique(processes["value"]["cgroup"]))

    def stop_recording(self) -> None:
        """End the window: new allocations are not recorded, frees still are. Idempotent."""
        self._stop_recording()

    def _stop_recording(self) -> float:
        """Returns when the window ended."""
        if self._ended is None:
            for tracepoint in self._tracepoints:
                self._bpf.detach_raw_tracepoint(tracepoint)
            self._ended = time.monotonic()
        return self._ended

    def read_out(self) -> RawObjects:
        """Stop recording, read the tables, and detach."""
        ended = self._stop_recording()
        time.sleep(max(0.0, ended + _SETTLE_SECONDS - time.monotonic()))
        bpf = self._bpf
        entries = bpf.read_map("objects", tables.OBJECT_ENTRY_DTYPE)
        stacks = bpf.read_map("stacks", tables.MAPS["stacks"])
        contexts = self._contexts.of(stacks["value"]["address"])
        totals = bpf.read_map("totals", tables.TOTALS_ENTRY_DTYPE)
        sized = totals["key"][totals["value"]["allocated_bytes"] > 0]
        used = np.isin(stacks["key"], np.union1d(entries["value"]["stack"], sized))
        addresses = set(np.unique(stacks["value"]["address"][used]).tolist()) - {0}
        raw = RawObjects(
            entries=entries,
            stacks=stacks,
            contexts=contexts,
            symbols=self._symbols.texts(addresses),
            totals=totals,
            processes=bpf.read_map("processes", tables.PROCESS_ENTRY_DTYPE),
            cgroups=bpf.read_map("cgroups", tables.MAPS["cgroups"]),
            lives=bpf.read_map("lives", tables.MAPS["lives"]),
            cpus=self._counters(),
            evictions=self._evictions,
            kinds=self.kinds,
            started_ns=self._started_ns,
            slices=self._settings.slices,
            slice_seconds=self._settings.slice_seconds,
            traced_seconds=ended - self._started,
            table_bytes=bpf.map_bytes(),
            missed_runs=sum(info.recursion_misses for info in bpf.program_infos(self._program_info_layout)),
        )
        self.close()
        return raw
