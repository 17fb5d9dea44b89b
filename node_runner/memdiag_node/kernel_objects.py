"""The check KernelObjects in a run: the census of slabs, and everything that is read through it."""

import mmap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Check
from memdiag_api.machine import HugePageSample
from memdiag_node.attempts import Attempts
from memdiag_node.census.clues import clues, frame_clues
from memdiag_node.census.clues.naming import AddressNames
from memdiag_node.census.files import dentries, files
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.frames.block_heads import BlockHeads
from memdiag_node.census.networks import namespaces, sockets
from memdiag_node.census.packets import packets, verdict_queues
from memdiag_node.census.slab_caches import slab_caches
from memdiag_node.cgroups.layout import account_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.kernel.modules import module_layout, read_modules
from memdiag_node.kernel.symbols import SymbolReader
from memdiag_node.machine import reverse_map
from memdiag_node.machine.huge_page_sample import HugePageHeads, count_zeros, huge_page_sample
from memdiag_node.owners import address_spaces
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.cpulist import online_cpus, possible_cpus
from memdiag_node.procfs.kpageflags import FrameTable, ReadFrames, open_frame_table
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.census import SlabCensus
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import SlabMemory
from memdiag_node.slab.page_scan import load_slab_programs
from memdiag_node.time_budget import Stop

CENSUS_SECONDS = 10.0
"""Time limit for finding the slabs. Beyond it, those found so far are a random sample."""
LOST_SECONDS = 1.0
"""A packet that is in no queue for so long is lost."""
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
    packets.fields,
    verdict_queues.fields,
    address_spaces.fields,
    reverse_map.fields,
    module_layout,
    account_layout,
)


class KernelObjects:
    """The census of one run: opened before the window, taken after it."""

    def __init__(
        self,
        opened: ExitStack,
        memory: KernelMemory,
        at: Mapping[str, int],
        *,
        attempts: Attempts,
        roots: HostRoots,
        stop: Stop,
    ) -> None:
        """`opened` closes what is opened later."""
        self._opened = opened
        self._memory = memory
        self._at = at
        self._attempts = attempts
        self._roots = roots
        self._stop = stop
        self._programs = self._load_programs()
        self._sizes_at_start: Mapping[str, int] = {}
        with attempts.step(Check.KERNEL_OBJECTS, "the first sizes of the slab caches", optional=True):
            self._sizes_at_start = slab_caches.cache_sizes(memory, at)

    def _load_programs(self) -> BpfObject | None:
        """What makes the census faster and more exact, and names addresses. None if this kernel or compiler refuses."""
        try:
            return self._opened.enter_context(load_slab_programs(self._at, possible_cpus(self._roots.sys)))
        except BpfError:
            return None

    def cgroups(self) -> tuple[KernelMemory, Mapping[str, int]]:
        """What a reader of the memory cgroups needs: kernel memory, and the offsets of `account_layout` in it."""
        return self._memory, self._at

    def slab_memory(self) -> SlabMemory:
        """What slabs are read through."""
        return SlabMemory(self._memory, self._at, self._programs)

    def names(self) -> AddressNames:
        """The names of addresses."""
        modules = read_modules(self._memory, self._at, self._roots.sys)
        try:
            return AddressNames(self._memory, self._opened.enter_context(SymbolReader(self._programs)).lines, modules)
        except BpfError:  # a kernel without symbols, which preflight has reported
            return AddressNames(self._memory, None, modules)

    def take(self) -> "TakenCensus | None":
        """Find all slabs, and read the sizes of their caches. None if that fails."""
        started = time.monotonic()
        late = self._stop.budget(CENSUS_SECONDS, share=_CENSUS_SHARE).late
        meminfo = self._roots.proc / "meminfo"
        with self._attempts.step(Check.KERNEL_OBJECTS, "finding the slabs"), ExitStack() as opened:
            flags = opened.enter_context(FrameTable(self._roots.proc / "kpageflags"))
            ranges = read_memory_map(self._roots.proc, self._roots.sys, page_bytes=mmap.PAGESIZE)
            census = SlabCensus(
                self._memory,
                self._at,
                ranges=ranges,
                read_flags=flags.read,
                cpus=online_cpus(self._roots.sys),
                late=late,
                programs=self._programs,
            )
            found = ObjectFindings(
                meminfo=parse_meminfo(meminfo.read_bytes(), source=str(meminfo)),
                slab=slab_caches.read_slab_caches(census, self._at, sizes_at_start=self._sizes_at_start, ranges=ranges),
                sampled_share=census.sampled_share,
                scan_seconds=time.monotonic() - started,
            )
            return TakenCensus(census, self._at, found, self._attempts, self._roots, self.names())
        return None


@dataclass(frozen=True, slots=True)
class TakenCensus:
    """The slabs of the node as they were found, through which objects are read."""

    census: SlabCensus
    at: Mapping[str, int]
    found: ObjectFindings
    attempts: Attempts
    roots: HostRoots
    names: AddressNames

    def read_networks(self) -> None:
        """Read every socket and network namespace."""
        with self._part("the sockets and network namespaces"):
            every = sockets.read_sockets(self.census, self.at)
            self.found.namespaces = namespaces.read_namespaces(self.census, self.at, every)

    def read_packets(self) -> None:
        """Read every packet. A second call can say which packets are lost: the same ones are in no queue again."""
        earlier = self.found.packets
        if earlier is None or len(earlier.unlinked.hashes):
            if earlier:  # a packet on its way is in no queue for a moment
                time.sleep(max(0.0, earlier.unlinked.read_seconds + LOST_SECONDS - time.monotonic()))
            with self._part("the packets"):
                self.found.packets = packets.read_packets(
                    self.census, self.at, earlier=earlier.unlinked if earlier else None
                )
        if self.found.packets and self.found.namespaces:
            with self._part("netfilter's queues"):
                self.found.verdict_queues = verdict_queues.read_verdict_queues(
                    self.census, self.at, self.roots.proc, self.found.packets, self.found.namespaces
                )

    def read_files(self, *, with_paths: bool) -> None:
        """Read every inode and every directory entry."""
        with self._part("the files"), ExitStack() as opened:
            charges = open_frame_table(self.roots.proc / "kpagecgroup", opened)
            self.found.files = files.read_files(
                self.census, self.at, read_charges=charges.read if charges else None, with_paths=with_paths
            )
        with self._part("the directory entries"):
            self.found.dentries = dentries.read_dentries(self.census, self.at, with_paths=with_paths)

    def read_clues(self) -> None:
        """Read what untyped objects point to, and the names of functions that packets point to."""
        with self._part("the clues to untyped objects"):
            self.found.clues = clues.read_clues(self.census, self.at, self.names)
            self.found.sees_symbols = self.names.sees_symbols
            addresses = {group.destructor for group in self.found.packets.groups} if self.found.packets else set()
            self.found.functions = {address: name.text for address, name in self.names.names(addresses - {0}).items()}

    def read_address_spaces(self) -> dict[int, address_spaces.AddressSpace]:
        """Read the address space of every process, by pid; empty if that fails."""
        with self._part("the address spaces of processes"):
            return address_spaces.read_address_spaces(self.census, self.at)
        return {}

    def read_frames(
        self, seen: BlockHeads, held: npt.NDArray[np.void], containers: Mapping[int, ContainerIdentity]
    ) -> None:
        """Read what the frames are that no flag identifies and no holder has; `held` is HELD_DTYPE."""
        with self._part("the frames of unknown use"):
            heads, singles = (frames[~np.isin(frames, held["frame"])] for frames in (seen.frames, seen.singles))
            self.found.frames = frame_clues.frame_clues(
                self.census, self.at, self.names, heads=heads, singles=singles, containers=containers
            )

    def sample_huge_pages(
        self,
        huge: HugePageHeads,
        read_charges: ReadFrames | None,
        containers: Mapping[int, ContainerIdentity],
        late: Callable[[], bool],
    ) -> HugePageSample | None:
        """Estimate how much of the huge pages of processes is zero. None without huge pages, or if it fails."""
        page_bytes = 1 << self.at["PAGE_SHIFT"]
        with self._part("a sample of huge pages"):
            counts = count_zeros(
                self.census.memory,
                huge.frames,
                linear_base=self.census.linear_base,
                page_bytes=page_bytes,
                frames_per_page=huge.frames_per_page,
                late=late,
            )
            if read_charges:
                charges = [read_charges(head, 1) for head in counts.heads.tolist()]
                counts = replace(counts, charges=np.concatenate([np.empty(0, "<u8"), *charges]))
            pages = counts.heads * np.uint64(self.at["STRUCT_PAGE_BYTES"]) + np.uint64(self.census.first_page)
            counts = replace(counts, mappers=reverse_map.mappers(self.census.memory, self.at, pages))
            return huge_page_sample(counts, containers, huge_pages=huge.count, page_bytes=page_bytes)
        return None

    @contextmanager
    def _part(self, what: str) -> Iterator[None]:
        """Read a part of the census. If it fails, the other parts are still read."""
        started = time.monotonic()
        with self.attempts.step(Check.KERNEL_OBJECTS, f"reading {what}", optional=True):
            yield
        self.found.scan_seconds += time.monotonic() - started


def object_fields(btf: Btf) -> dict[str, int]:
    """The offsets that all parts of the census need, taken beforehand so that the BTF need not stay in memory."""
    return {name: value for fields in _FIELDS for name, value in fields(btf).items()}
