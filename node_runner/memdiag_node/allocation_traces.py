"""The check AllocPageTrace in a run: the trace of pages, and that of the objects in them."""

import math
import mmap
from contextlib import ExitStack
from dataclasses import replace

from memdiag_api.evidence import Check
from memdiag_node.attempts import Attempts
from memdiag_node.procfs.cpulist import online_cpus, possible_cpus
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.cache import read_caches
from memdiag_node.slab.lookup import SlabLookup, SlabMemory
from memdiag_node.time_budget import Stop
from memdiag_node.trace.objects.decode import ObjectResult, decode_objects
from memdiag_node.trace.objects.object_trace import ObjectTrace
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.settings import TraceSettings

_OBJECTS_SHARE = 0.4
"""Of the CPU budget. Pages have the rest."""
_TALLY_SHARE = 0.4
"""Of the remaining grace period, after the run was asked to stop."""
_CHECK = Check.ALLOC_PAGE_TRACE


class AllocationTraces:
    """Both traces, from their start to their results."""

    def __init__(
        self,
        pages: PageTrace,
        objects: ObjectTrace | None,
        *,
        slabs: SlabMemory | None,
        attempts: Attempts,
        roots: HostRoots,
    ) -> None:
        self._pages = pages
        self._objects = objects
        self._slabs = slabs
        self._attempts = attempts
        self._roots = roots

    @classmethod
    def start(
        cls,
        settings: TraceSettings,
        *,
        opened: ExitStack,
        attempts: Attempts,
        roots: HostRoots,
        slabs: SlabMemory | None = None,
    ) -> "AllocationTraces | None":
        """Attach the programs until `opened` is closed. None, with the check dropped, if pages cannot be traced.

        `slabs`: to read which caches there are, and at the end, what the slabs are used for. None if slabs cannot be.
        """
        share = settings.cpu_budget_share
        objects = None
        # Objects first: compiling takes most memory, and should not meet the mapped table of the other trace.
        with attempts.step(_CHECK, "loading the trace of slab, vmalloc and per-CPU memory", optional=True):
            objects = opened.enter_context(
                ObjectTrace(replace(settings, cpu_budget_share=_OBJECTS_SHARE * share), roots=roots)
            )
        with attempts.step(_CHECK, "starting the trace"):
            pages = opened.enter_context(
                PageTrace(replace(settings, cpu_budget_share=(1 - _OBJECTS_SHARE) * share), roots=roots)
            )
            objects = cls._started(objects, slabs, attempts)
            return cls(pages, objects, slabs=slabs, attempts=attempts, roots=roots)
        if objects:
            objects.close()
        return None

    @staticmethod
    def _started(objects: ObjectTrace | None, slabs: SlabMemory | None, attempts: Attempts) -> ObjectTrace | None:
        """Start with the trace of pages, after everything is compiled, so that both have the same window."""
        if objects:
            with attempts.step(_CHECK, "starting the trace of slab, vmalloc and per-CPU memory", optional=True):
                objects.start(read_caches(slabs.memory, slabs.at) if slabs else ())
                return objects
            objects.close()
        return None

    def advance(self) -> None:
        """Advance to the current time slice, and keep room in the tables. Call it every quarter of a second."""
        self._pages.advance()
        if self._objects:
            self._objects.advance()

    def stop_recording(self) -> None:
        """Stop recording new allocations before the holders are scanned. The traces see frees until their own end.

        So a block that a holder has and that is outstanding at the end belongs to that holder: it was not freed and
        allocated again in between.
        """
        with self._attempts.step(_CHECK, "ending the window", optional=True):
            self._pages.stop_recording()
            if self._objects:
                self._objects.stop_recording()

    def finish(self, stop: Stop) -> tuple[TraceResult | None, ObjectResult | None]:
        """Read the results, and detach. A result is None if it cannot be read."""
        budget = stop.budget(math.inf, share=_TALLY_SHARE)
        with self._attempts.step(_CHECK, "reading the result"), ExitStack() as opened:
            lookup = self._lookup(self._slabs, opened) if self._slabs else None
            objects = self._finish_objects(lookup)
            pages = self._pages.finish(budget.late, lookup=lookup)
            if budget.ran_out:
                self._attempts.fail(
                    _CHECK,
                    "the run was asked to stop: a part of the outstanding blocks was not checked against the use of "
                    "their frames",
                    optional=True,
                    remedy="Allow a longer grace period (--grace; in a cluster, runner.terminationGraceSeconds).",
                )
            return pages, objects
        return None, None

    def _lookup(self, slabs: SlabMemory, opened: ExitStack) -> SlabLookup | None:
        with self._attempts.step(_CHECK, "finding the slabs of traced objects", optional=True):
            return SlabLookup(
                slabs.memory,
                slabs.at,
                ranges=read_memory_map(self._roots.proc, self._roots.sys, page_bytes=mmap.PAGESIZE),
                read_flags=opened.enter_context(FrameTable(self._roots.proc / "kpageflags")).read,
                cpus=online_cpus(self._roots.sys),
                programs=slabs.programs,
            )
        return None

    def _finish_objects(self, lookup: SlabLookup | None) -> ObjectResult | None:
        if self._objects is None:
            return None
        with self._attempts.step(_CHECK, "reading traced objects", optional=True):
            raw = self._objects.read_out()
            return decode_objects(
                raw,
                lookup.objects(raw.slab_addresses()) if lookup else None,
                possible_cpus=len(possible_cpus(self._roots.sys)),
            )
        return None
