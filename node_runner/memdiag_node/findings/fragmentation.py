"""Rule: free memory in blocks that are too small, where it matters (docs/machine.md)."""

from collections.abc import Iterator

from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.machine import FreeBlocks
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation

COSTLY_ORDER = 3
"""The largest blocks for which the kernel tries hard: 32 KiB with pages of 4 KiB. Network packets use them."""
_AMPLE_SHARE = 0.04
"""Free memory of which share of the total is ample: with less, blocks are missing because memory is."""
_LARGE_BLOCK_SHARE = 0.02


def fragmentation(situation: Situation) -> Iterator[Draft]:
    """Yield a finding if free memory is ample, hardly any of it is in large blocks, and allocations waited for them."""
    machine = situation.measured.machine
    blocks = machine.free_blocks if machine else None
    if blocks is None:
        return
    free_bytes = sum(blocks.bytes_by_order)
    large_bytes = sum(blocks.bytes_by_order[COSTLY_ORDER:])
    total_bytes = situation.measured.host.mem_total_bytes
    waits = _waits(blocks)
    if free_bytes < _AMPLE_SHARE * total_bytes or large_bytes >= _LARGE_BLOCK_SHARE * free_bytes or not waits:
        return
    block = format_bytes(situation.page_bytes << COSTLY_ORDER)
    yield Draft(
        kind=FindingKind.FRAGMENTATION,
        size_bytes=free_bytes - large_bytes,
        claims_bytes={},
        owner=MemoryOwner(kind=OwnerKind.NODE, name="free memory"),
        leak=LeakAnswer.NO,
        confidence=Confidence.MEDIUM,
        sentence=f"{format_bytes(free_bytes)} are free, but only {format_bytes(large_bytes)} of them in blocks of "
        f"{block} or more, and allocations wait for such blocks.",
        reasons=[
            f"it matters if at least {_AMPLE_SHARE:.0%} of the memory is free, and less than {_LARGE_BLOCK_SHARE:.0%} "
            f"of that in blocks of order {COSTLY_ORDER} and larger",
            waits,
        ],
        advice="Write 1 to /proc/sys/vm/compact_memory, and raise vm.min_free_kbytes or vm.compaction_proactiveness.",
        sections=["machine.freeBlocks"],
        is_notable=True,
    )


def _waits(blocks: FreeBlocks) -> str:
    """Return what allocations waited for in the window. Empty if they did not, or if that is not known."""
    parts = [
        f"{count} {what}"
        for count, what in (
            (blocks.compaction_stalls, "waits for compaction"),
            (blocks.compaction_failures, "failed compactions"),
            (blocks.reclaim_stalls, "waits for reclaim"),
        )
        if count
    ]
    return f"in the window there were {', '.join(parts)}" if parts else ""
