"""The measurements of one run: the input of the conclusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.containers import ContainerAccount, OomKill, RemovedCgroups
from memdiag_api.evidence import Breakdown, Census, Check, Holder, Host, Need, ScanCoverage, Stack, Trace, Window
from memdiag_api.history import RunSummary
from memdiag_api.machine import Machine
from memdiag_api.owners import ClassOwners
from memdiag_node.counted_stacks import counted_stacks
from memdiag_node.findings.doubts import Doubt
from memdiag_node.holding import Holding
from memdiag_node.owners.process_memory import ProcessMemory


@dataclass(frozen=True, slots=True)
class TracedBlocks:
    """The blocks that were outstanding when the trace ended, for the join."""

    blocks: npt.NDArray[np.void]
    """With the fields page, order, frames, stack and weight of trace.result.BLOCK_DTYPE."""
    memory_classes: Sequence[str]
    """Of every traced stack, including those that the document does not list."""
    struct_page_bytes: int
    """Distance of two adjacent pages in `blocks`."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """The measurements of one run. A part is None or empty if its check was not requested or failed."""

    host: Host
    window: Window
    checks: Sequence[Check]
    """The checks that were run."""
    needs: Sequence[Need]
    breakdown: Breakdown | None = None
    trace: Trace | None = None
    stacks: Sequence[Stack] = ()
    traced: TracedBlocks | None = None
    census: Census | None = None
    machine: Machine | None = None
    coverage: ScanCoverage | None = None
    holdings: Sequence[Holding] = ()
    """Largest pinned first; without those of this run."""
    own_holdings: Sequence[Holding] = ()
    """BPF maps that this run loaded: part of their classes, but in no list of holders and in no finding."""
    owners: Sequence[ClassOwners] = ()
    """Of each class whose owners were determined, largest class first."""
    processes: Sequence[ProcessMemory] = ()
    """At the end of the window, in no order."""
    history: Sequence[RunSummary] = ()
    """Earlier runs of the same node and boot, latest first."""
    uptime_seconds: float | None = None
    """Time since boot at the end of the run. None if it was not read."""
    containers: Sequence[ContainerAccount] = ()
    """Largest usage first."""
    removed_cgroups: RemovedCgroups | None = None
    oom_kills: Sequence[OomKill] = ()
    """Latest first."""
    notes: Sequence[str] = ()
    doubts: Sequence[Doubt] = ()
    """What the run did not see, except what `checks`, `coverage`, `trace` and `census` show (conclusion.doubts)."""

    @property
    def object_classes(self) -> Sequence[str]:
        """The classes of which objects were traced, and not only pages."""
        return self.trace.object_classes if self.trace else ()

    @property
    def judged_stacks(self) -> list[int]:
        """The indexes of the stacks that rules judge, each byte in one of them at most. The others are evidence."""
        return counted_stacks(self.stacks, self.object_classes)

    @property
    def holders(self) -> list[Holder]:
        """The holder of each holding, in the same order."""
        return [one.holder for one in self.holdings]

    def own_bytes(self, memory_class: str) -> int:
        """Return what this run itself keeps of a class, since its start and until its end."""
        return sum(one.holder.pinned_bytes for one in self.own_holdings if one.holder.memory_class == memory_class)

    @property
    def window_seconds(self) -> float:
        """Approximate time between the two scans of the sockets."""
        return self.window.traced_seconds or self.window.requested_seconds
