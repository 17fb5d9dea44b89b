"""All that was measured, put together: the join, the ledger, the verdict, one evidence document."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import (
    Breakdown,
    Census,
    Check,
    ContainerShare,
    Evidence,
    FilledBy,
    HeldBy,
    Holder,
    Host,
    Ledger,
    Need,
    NeedState,
    ScanCoverage,
    Stack,
    Trace,
    Window,
)
from memdiag_node.conclusion.document import keep_lists
from memdiag_node.conclusion.doubts import Doubt
from memdiag_node.conclusion.join import Join, Overlap, join_blocks, unique_bytes
from memdiag_node.conclusion.ledger import held_bytes, ledger_of
from memdiag_node.conclusion.verdict import Findings, Thresholds, decide_verdict
from memdiag_node.trace.stacks import ALLOC_PAGE, first_name

_MAX_CONTAINERS = 64
_MAX_NOTES, _MAX_NOTE = 32, 1024


@dataclass(frozen=True, slots=True)
class Holding:
    """One holder, and the blocks that it pins (fields page and order, see join_blocks; slab: no allocpage)."""

    holder: Holder
    blocks: npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Measurements:
    """What one run measured. A part is None or empty when its check was not asked for, or could not be made."""

    host: Host
    window: Window
    checks: Sequence[Check]
    needs: Sequence[Need]
    breakdown: Breakdown | None = None
    trace: Trace | None = None
    stacks: Sequence[Stack] = ()
    traced_blocks: npt.NDArray[np.void] | None = None
    memory_classes: Sequence[str] = ()
    """Of every traced stack, also those beyond `stacks`."""
    census: Census | None = None
    coverage: ScanCoverage | None = None
    holdings: Sequence[Holding] = ()
    """Largest pinned first."""
    struct_page_bytes: int = 64
    notes: Sequence[str] = field(default_factory=tuple)
    doubts: Sequence[Doubt] = ()
    """What the run did not see, where nothing else here says so: see analyze.doubts."""


def conclude(
    measured: Measurements, *, run_id: str, thresholds: Thresholds, max_stacks: int, max_holders: int
) -> Evidence:
    """The evidence document of a run: every finding in the light of the others."""
    page_bytes = measured.host.page_size_bytes
    join = _join(measured)
    overlaps = [one for one in join.overlaps if 0 <= one.stack < len(measured.stacks)]
    of_stack, of_holder = _overlaps_by(overlaps, "stack"), _overlaps_by(overlaps, "holder")
    stacks = [
        _with_holders(stack, of_stack.get(index, []), join.explained_by_stack_bytes.get(index, 0))
        for index, stack in enumerate(measured.stacks)
    ]
    holders = [
        _with_stacks(holding, of_holder.get(index, []), page_bytes) for index, holding in enumerate(measured.holdings)
    ]
    ledger = _ledger(measured, join)
    verdict = decide_verdict(
        Findings(
            mem_total_bytes=measured.host.mem_total_bytes,
            checks=measured.checks,
            interrupted=measured.window.interrupted,
            window_seconds=measured.window.traced_seconds or measured.window.requested_seconds,
            breakdown=measured.breakdown,
            census=measured.census,
            coverage=measured.coverage,
            trace=measured.trace,
            stacks=stacks,
            holders=holders,
            held_bytes=held_bytes(ledger) if ledger else 0,
            pinned_together_bytes=lambda indexes: unique_bytes(
                [measured.holdings[index].blocks for index in indexes], page_bytes=page_bytes
            ),
            doubts=measured.doubts,
        ),
        thresholds,
    )
    kept = keep_lists(stacks, holders, verdict, max_stacks=max_stacks, max_holders=max_holders)
    return Evidence(
        run_id=run_id,
        host=measured.host,
        window=measured.window,
        checks=list(measured.checks),
        needs=list(measured.needs),
        breakdown=measured.breakdown,
        trace=measured.trace,
        stacks=kept.stacks,
        coverage=measured.coverage,
        holders=kept.holders,
        ledger=ledger,
        census=measured.census,
        verdict=kept.verdict,
        notes=[note[:_MAX_NOTE] for note in (*_narrower(measured), *_unnamed(measured.stacks), *measured.notes)][
            :_MAX_NOTES
        ],
    )


def _join(measured: Measurements) -> Join:
    if measured.traced_blocks is None:
        return Join((), {})
    return join_blocks(
        measured.traced_blocks,
        [holding.blocks for holding in measured.holdings],
        struct_page_bytes=measured.struct_page_bytes,
        page_bytes=measured.host.page_size_bytes,
    )


def _overlaps_by(overlaps: Sequence[Overlap], side: Literal["stack", "holder"]) -> dict[int, list[Overlap]]:
    grouped: dict[int, list[Overlap]] = {}
    for overlap in overlaps:
        grouped.setdefault(getattr(overlap, side), []).append(overlap)
    return grouped


def _with_holders(stack: Stack, overlaps: Sequence[Overlap], explained_bytes: int) -> Stack:
    parts = [
        HeldBy(holder=one.holder, size_bytes=one.size_bytes, share=_share(one.size_bytes, stack.outstanding_bytes))
        for one in overlaps
    ]
    return stack.model_copy(update={"held_by": parts, "explained_bytes": min(explained_bytes, stack.outstanding_bytes)})


def _with_stacks(holding: Holding, overlaps: Sequence[Overlap], page_bytes: int) -> Holder:
    pinned_bytes = max(unique_bytes([holding.blocks], page_bytes=page_bytes), holding.holder.pinned_bytes)
    parts = [
        FilledBy(stack=one.stack, size_bytes=one.size_bytes, share=_share(one.size_bytes, pinned_bytes))
        for one in overlaps
    ]
    return holding.holder.model_copy(update={"filled_by": parts})


def _ledger(measured: Measurements, join: Join) -> Ledger | None:
    if measured.breakdown is None:
        return None
    page_bytes = measured.host.page_size_bytes
    kinds = {holding.holder.kind for holding in measured.holdings}
    held = {
        kind: _held_bytes([one for one in measured.holdings if one.holder.kind is kind], page_bytes)
        for kind in sorted(kinds)
    }
    outstanding_bytes = measured.trace.outstanding_bytes if measured.trace else 0
    explained_bytes = sum(
        size_bytes
        for stack, size_bytes in join.explained_by_stack_bytes.items()
        if 0 <= stack < len(measured.memory_classes) and measured.memory_classes[stack] == ALLOC_PAGE
    )
    return ledger_of(
        measured.breakdown,
        held_by_kind_bytes=held,
        containers=_by_container(measured.holdings, page_bytes),
        unheld_bytes=max(0, outstanding_bytes - explained_bytes),
    )


def _held_bytes(holdings: Sequence[Holding], page_bytes: int) -> int:
    """The allocpage that these holders pin. Of a page pool the sum is known; of its blocks, those that were traced."""
    unknown = (one.holder.pinned_bytes - unique_bytes([one.blocks], page_bytes=page_bytes) for one in holdings)
    known_bytes = unique_bytes([_alloc_page_blocks(one) for one in holdings], page_bytes=page_bytes)
    return known_bytes + sum(max(0, size_bytes) for size_bytes in unknown)


def _alloc_page_blocks(holding: Holding) -> npt.NDArray[np.void]:
    blocks: npt.NDArray[np.void] = holding.blocks[~holding.blocks["slab"]]
    return blocks


def _by_container(holdings: Sequence[Holding], page_bytes: int) -> list[ContainerShare]:
    """The allocpage that the holders of each container pin; a holder is its first owner's."""
    blocks: dict[tuple[str, str], list[npt.NDArray[np.void]]] = {}
    for holding in holdings:
        for owner in holding.holder.owners[:1]:
            if owner.container_id:
                blocks.setdefault((owner.container_id, owner.pod_uid), []).append(_alloc_page_blocks(holding))
    shares = [
        ContainerShare(container_id=container, pod_uid=pod, size_bytes=unique_bytes(held, page_bytes=page_bytes))
        for (container, pod), held in blocks.items()
    ]
    return sorted((one for one in shares if one.size_bytes), key=lambda one: -one.size_bytes)[:_MAX_CONTAINERS]


def _narrower(measured: Measurements) -> list[str]:
    """What a missing need kept the run from doing."""
    return [
        f"{check.value} was not made: {need.detail or need.name}"
        for need in measured.needs
        if need.state is NeedState.MISSING
        for check in need.checks
    ]


def _unnamed(stacks: Sequence[Stack]) -> list[str]:
    """What it costs that the kernel gave no names for whole stacks."""
    unnamed = sum(first_name(stack.frames) is None for stack in stacks)
    if not unnamed:
        return []
    return [f"{unnamed} of {len(stacks)} call stacks have no function names: they are not judged, and name no process"]


def _share(part_bytes: int, whole_bytes: int) -> float:
    return min(1.0, part_bytes / whole_bytes) if whole_bytes else 0.0
