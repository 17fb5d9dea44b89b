"""One census of kernel objects as the runner takes it, with the cost of each part, as JSON: for census_cost.py.

In a process of its own, so that neither memory nor programs of an earlier census count.
"""

import json
import mmap
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from memdiag_api.evidence import Check
from memdiag_node.attempts import Attempts
from memdiag_node.census.frames.block_heads import BlockHeads
from memdiag_node.census.frames.frames import HELD_DTYPE, take_census
from memdiag_node.cgroups.tree import container_cgroups
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import open_memory
from memdiag_node.kernel_objects import KernelObjects, TakenCensus, object_fields
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import FrameRange, read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.page_scan import page_scanner
from memdiag_node.slab.slabs import MAX_SLABS, PIECE_FRAMES, Slabs, pieces_of, read_slabs
from memdiag_node.time_budget import Stop
from support.slab_census import lean_memory, load_programs, slabinfo_rows, take_slab_census

_NORMAL_95 = 1.96
_TIB_PIECES = (1 << 40) // mmap.PAGESIZE // PIECE_FRAMES


def resident_bytes(field: str) -> int:
    """A figure of /proc/self/status: VmRSS, or VmHWM for the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"/proc/self/status has no {field}")


def cpu_seconds() -> float:
    """The CPU time of this process and of the children it has waited for."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in usage)


class Parts:
    """The CPU time and the peak of memory of each part."""

    def __init__(self) -> None:
        self.costs: dict[str, dict[str, float]] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the part; its peak of memory is apart from those of others."""
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM
        before = cpu_seconds()
        yield
        cost = self.costs.setdefault(name, {"cpu_seconds": 0.0, "peak_bytes": 0})
        cost["cpu_seconds"] += cpu_seconds() - before
        cost["peak_bytes"] = max(cost["peak_bytes"], resident_bytes("VmHWM"))


def take() -> dict[str, Any]:
    """Take the census as `capture` does without a socket scan; raises RuntimeError if a part fails."""
    parts, roots = Parts(), HostRoots()
    attempts = Attempts([Check.KERNEL_OBJECTS], lambda _: None)
    with ExitStack() as opened:
        at = object_fields(Btf.load())
        memory = open_memory(at, opened)
        objects = KernelObjects(opened, memory, at, attempts=attempts, roots=roots, stop=Stop())
        start_seconds, before_bytes = cpu_seconds(), resident_bytes("VmRSS")
        start_peak_bytes = resident_bytes("VmHWM")
        started = time.monotonic()
        before = slabinfo_rows()
        with parts.part("slabs"):
            census = objects.take()
        after = slabinfo_rows()
        if census is None:
            raise RuntimeError(f"no census: {attempts.needs}")
        _read_parts(parts, census)
        seconds = time.monotonic() - started
        _read_frames(parts, census, objects, roots)
        if attempts.needs:
            raise RuntimeError(f"parts failed: {attempts.needs}")
        counted = zip(census.census.caches, census.census.count(), strict=True)
        return {
            "start_seconds": start_seconds,
            "start_peak_bytes": start_peak_bytes,
            "before_bytes": before_bytes,
            "seconds": seconds,
            "parts": parts.costs,
            "sampled_share": census.census.sampled_share,
            "slabinfo": [{name: [row.places, row.active] for name, row in one.items()} for one in (before, after)],
            "caches": {cache.name: [count.objects, count.in_use, count.slab_bytes] for cache, count in counted},
        }


def _read_parts(parts: Parts, census: TakenCensus) -> None:
    with parts.part("sockets, network namespaces"):
        census.read_networks()
    for _ in range(2):  # as the runner does: what is in no queue both times is lost
        with parts.part("packets"):
            census.read_packets()
    with parts.part("files, directory entries"):
        census.read_files(with_paths=True)
    with parts.part("clues"):
        census.read_clues()


def _read_frames(parts: Parts, census: TakenCensus, objects: KernelObjects, roots: HostRoots) -> None:
    """Read the frames of unknown use. That all frames are counted before is the breakdown's work, not measured."""
    containers = container_cgroups(*objects.cgroups())
    with FrameTable(roots.proc / "kpageflags") as flags:
        seen = BlockHeads(flags.read)
        ranges = read_memory_map(roots.proc, roots.sys, page_bytes=mmap.PAGESIZE)
        take_census(ranges, seen.read, None, held=None, late=lambda: False)
    with parts.part("frames of unknown use"):
        census.read_frames(seen, np.empty(0, HELD_DTYPE), containers)


def simulate(budget_seconds: float) -> dict[str, Any]:
    """Find the slabs of 1 TiB: this machine's memory, repeated until it is as large. Only that part is simulated."""
    at = object_layout(Btf.load())
    with lean_memory(at) as memory, load_programs(at) as programs:
        census = take_slab_census(memory, Btf.load(), at=at, programs=programs)
        addresses = np.array([cache.address for cache in census.caches], "<u8")
        strides = np.array([cache.stride_bytes for cache in census.caches], "<u8")
        scan = page_scanner(programs, at, addresses, first_page=census.first_page)
        ranges = read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)
        real = [first for first, frames in pieces_of(ranges) if frames == PIECE_FRAMES]

        def read(late: Callable[[], bool], pieces: int, max_slabs: int = MAX_SLABS) -> Slabs:
            return read_slabs(
                lambda first, frames: scan(real[first // PIECE_FRAMES % len(real)], frames),
                strides,
                ranges=[FrameRange(0, pieces * PIECE_FRAMES)],
                linear_base=census.linear_base,
                page_shift=at["PAGE_SHIFT"],
                late=late,
                max_slabs=max_slabs,
            )

        truth = _repeated(read(lambda: False, len(real)), len(real))
        Path("/proc/self/clear_refs").write_text("5")
        before_bytes, before, end = resident_bytes("VmRSS"), cpu_seconds(), time.monotonic() + budget_seconds
        found = read(lambda: time.monotonic() >= end, _TIB_PIECES)
        estimate = found.estimate(np.arange(len(found.table)), found.table["in_use"].astype(np.float64))
        return {
            "budget_seconds": budget_seconds,
            "seconds": time.monotonic() - end + budget_seconds,
            "cpu_seconds": cpu_seconds() - before,
            "before_bytes": before_bytes,
            "peak_bytes": resident_bytes("VmHWM"),
            "sampled_share": found.sampled_share,
            "slabs": len(found.table),
            "estimate": estimate.total,
            "margin": _NORMAL_95 * estimate.standard_error,
            "truth": truth,
        }


def _repeated(one: Slabs, pieces: int) -> int:
    by_piece = np.bincount(one.table["piece"], one.table["in_use"], pieces)
    return int(by_piece[np.arange(_TIB_PIECES) % pieces].sum())


_MODES: Mapping[str, Callable[..., dict[str, Any]]] = {"take": take, "simulate": simulate}

if __name__ == "__main__":
    json.dump(_MODES[sys.argv[1]](*map(float, sys.argv[2:])), sys.stdout)
