"""What one census found, in raw form."""

from dataclasses import dataclass, field

from memdiag_node.census.clues.clues import SubjectClues
from memdiag_node.census.clues.frame_clues import FrameFindings
from memdiag_node.census.files.dentries import RawDentries
from memdiag_node.census.files.found import RawFiles
from memdiag_node.census.networks.namespaces import Namespaces
from memdiag_node.census.packets.packets import PacketsReading
from memdiag_node.census.packets.verdict_queues import VerdictQueues
from memdiag_node.census.slab_caches.slab_caches import SlabFigures
from memdiag_node.procfs.meminfo import MemInfo


@dataclass(slots=True)
class ObjectFindings:
    """What was read. A part that could not be read is None."""

    meminfo: MemInfo
    """At the time of the census."""
    slab: SlabFigures
    files: RawFiles | None = None
    dentries: RawDentries | None = None
    namespaces: Namespaces | None = None
    packets: PacketsReading | None = None
    verdict_queues: VerdictQueues | None = None
    functions: dict[int, str] = field(default_factory=dict)
    """Names of the functions that packets point to, by address."""
    clues: list[SubjectClues] | None = None
    frames: FrameFindings | None = None
    sees_symbols: bool = False
    sampled_share: float = 1.0
    scan_seconds: float = 0.0
