"""The check KernelObjects in a run: the census of slabs, and everything that is read through it."""

import mmap
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Check
from memdiag_node.attempts import Attempts
from memdiag_node.census import clues, dentries, files, frame_clues, namespaces, slab_caches, sockets
from memdiag_node.census.block_heads import BlockHeads
from memdiag_node.census.clues import SubjectClues
from memdiag_node.census.dentries import RawDentries
from memdiag_node.census.found_files import RawFiles
from memdiag_node.census.namespaces import Namespaces
from memdiag_node.census.naming import AddressNames
from memdiag_node.census.slab_caches import SlabFigures
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.memory import KernelMemory, open_memory
from memdiag_node.kernel.modules import module_layout, read_modules
from memdiag_node.kernel.symbols import SymbolReader
from memdiag_node.procfs.cpulist import parse_cpus
from memdiag_node.procfs.kpageflags import open_frame_table
from memdiag_node.procfs.meminfo import MemInfo, parse_meminfo
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.layout import object_layout
from memdiag_node.time_budget import Stop

CENSUS_SECONDS = 10.0
"""Time limit for finding the slabs. Beyond it, those found so far are a random sample."""
_CENSUS_SHARE = 0.2
"""Of the remaining grace period, after the run was asked to stop."""
_FIELDS: tuple[Callable[[Btf], Mapping[str, int]], ...] = (
    object_layout,
    slab_caches.fields,
    frame_clues.fields,
    files.fields,
    dentries.fields,
    sockets.fields,
    namespaces.fields,
    module_layout,
)


@dataclass(slots=True)
class ObjectFindings:
    """What was read. A part that could not be read is None."""

    meminfo: MemInfo | None = None
    """At the time of the census."""
    slab: SlabFigures | None = None
    files: RawFiles | None = None
    dentries: RawDentries | None = None
    namespaces: Namespaces | None = None
    clues: list[SubjectClues] | None = None
    sees_symbols: bool = False
    block_heads: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, "<u8"))
    """First frames of compound blocks that no flag identifies."""
    sampled_share: float = 1.0
    scan_seconds: float = 0.0


class KernelObjects:
    """The census of one run: opened before the window, taken after it."""

    def __init__(
        self, memory: KernelMemory, at: Mapping[str, int], *, attempts: Attempts, roots: HostRoots, stop: Stop
    ) -> None:
        self.memory = memory
        self.at = at
        self.found = ObjectFindings()
        self._attempts = attempts
        self._roots = roots
        self._stop = stop
        self._census: SlabCensus | None = None
        self._sizes_at_start: Mapping[str, int] = {}
        with attempts.step(Check.KERNEL_OBJECTS, "the first sizes of the slab caches", optional=True):
            self._sizes_at_start = slab_caches.cache_sizes(memory, at)

    def take(self) -> None:
        """Find all slabs, and take their sizes."""
        started = time.monotonic()
        late = self._stop.budget(CENSUS_SECONDS, share=_CENSUS_SHARE).late
        meminfo = self._roots.proc / "meminfo"
        with self._attempts.step(Check.KERNEL_OBJECTS, "finding the slabs"), ExitStack() as opened:
            flags = open_frame_table(self._roots.proc / "kpageflags", opened)
            if flags is None:
                raise BpfError("/proc/kpageflags cannot be read")
            heads = BlockHeads(flags.read)
            online = self._roots.sys / "devices/system/cpu/online"
            self._census = SlabCensus(
                self.memory,
                self.at,
                ranges=read_memory_map(self._roots.proc, self._roots.sys, page_bytes=mmap.PAGESIZE),
                read_flags=heads.read,
                cpus=parse_cpus(online.read_bytes(), source=str(online)),
                late=late,
            )
            self.found.meminfo = parse_meminfo(meminfo.read_bytes(), source=str(meminfo))
            self.found.block_heads = heads.frames
            self.found.sampled_share = self._census.sampled_share
            self.found.slab = slab_caches.read_slab_caches(
                self._census, self.at, sizes_at_start=self._sizes_at_start, block_heads=heads.frames
            )
        self.found.scan_seconds += time.monotonic() - started

    def read_networks(self) -> npt.NDArray[np.uint64]:
        """Read every network namespace; return the address of every socket, to scan with the others."""
        with self._step("the sockets and network namespaces"):
            if self._census:
                every = sockets.read_sockets(self._census, self.at)
                self.found.namespaces = namespaces.read_namespaces(self._census, self.at, every)
                return sockets.referred_to(every) if every else np.empty(0, "<u8")
        return np.empty(0, "<u8")

    def read_files(self, *, with_paths: bool) -> None:
        """Read every inode and every directory entry."""
        with self._step("the files"), ExitStack() as opened:
            charges = open_frame_table(self._roots.proc / "kpagecgroup", opened)
            if self._census:
                self.found.files = files.read_files(
                    self._census, self.at, read_charges=charges.read if charges else None, with_paths=with_paths
                )
        with self._step("the directory entries"):
            if self._census:
                self.found.dentries = dentries.read_dentries(self._census, self.at, with_paths=with_paths)

    def read_clues(self) -> None:
        """Read what untyped objects point to."""
        with self._step("the clues to untyped objects"), ExitStack() as opened:
            if self._census:
                names = self._names(opened)
                self.found.clues = clues.read_clues(self._census, names)
                self.found.sees_symbols = names.sees_symbols

    def close(self) -> None:
        """Free the tables of the census. What was found stays."""
        self._census = None

    def _names(self, opened: ExitStack) -> AddressNames:
        modules = read_modules(self.memory, self.at, self._roots.sys)
        try:
            return AddressNames(self.memory, opened.enter_context(SymbolReader()).lines, modules)
        except BpfError:  # a kernel without symbols, which preflight has reported
            return AddressNames(self.memory, None, modules)

    def _step(self, what: str) -> "_Timed":
        return _Timed(self, what)


def object_fields(btf: Btf) -> dict[str, int]:
    """The offsets that all parts of the census need, taken beforehand so that the BTF need not stay in memory."""
    return {name: value for fields in _FIELDS for name, value in fields(btf).items()}
