"""Combine all measurements: the join, the ledger and the verdict, in one evidence document."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import (
    ContainerShare,
    Evidence,
    FilledBy,
    HeldBy,
    Ledger,
    NeedState,
    Stack,
)
from memdiag_api.memory_classes import ClassName
from memdiag_node.conclusion.document import keep_lists
from memdiag_node.conclusion.join import Join, Overlap, join_blocks
from memdiag_node.conclusion.ledger import held_bytes, ledger_of
from memdiag_node.findings.draft import counted, ranked
from memdiag_node.findings.kernel_owners import kernel_owners
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.rules import explained_bytes, find
from memdiag_node.findings.run_summary import summary_of
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.findings.verdict import LEAK_DETECTED, decide_verdict
from memdiag_node.holding import Holding, pinned_together_bytes, unique_bytes
from memdiag_node.trace.stacks import first_name


def conclude(
    measured: Measurements, *, run_id: str, thresholds: Thresholds, max_stacks: int, max_holders: int
) -> Evidence:
    """Return the evidence document of a run, with every finding related to the others."""
    join = _join(measured)
    ledger = _ledger(measured, join)
    joined = _with_overlaps(measured, join)
    situation = Situation(joined, thresholds, held_bytes(ledger) if ledger else 0)
    owners = sorted([*joined.owners, *kernel_owners(situation)], key=lambda one: -one.size_bytes)
    situation = replace(situation, measured=replace(joined, owners=owners))
    drafts = ranked(find(situation))
    kept = keep_lists(
        joined.stacks,
        joined.holders,
        decide_verdict(situation, drafts),
        counted(drafts[: limits.MAX_FINDINGS], situation.class_bytes),
        max_stacks=max_stacks,
        max_holders=max_holders,
    )
    notes = (*_skipped(measured), *_unnamed(measured.stacks), *measured.notes)
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
        containers=list(measured.containers),
        removed_cgroups=measured.removed_cgroups,
        oom_kills=list(measured.oom_kills),
        machine=measured.machine,
        owners=owners,
        findings=kept.findings,
        explained_bytes=explained_bytes(situation, drafts),
        summary=summary_of(situation, run_id),
        history=list(measured.history[: limits.MAX_HISTORY_RUNS]),
        leak_detected=LEAK_DETECTED[kept.verdict.kind],
        verdict=kept.verdict,
        notes=[note[: limits.MAX_SENTENCE] for note in notes][: limits.MAX_NOTES],
    )


def _join(measured: Measurements) -> Join:
    if measured.traced is None:
        return Join((), {})
    return join_blocks(
        measured.traced.blocks,
        [holding.blocks for holding in measured.holdings],
        struct_page_bytes=measured.traced.struct_page_bytes,
        page_bytes=measured.host.page_size_bytes,
    )


def _with_overlaps(measured: Measurements, join: Join) -> Measurements:
    """Return `measured` with the holders of each stack and the stacks of each holder."""
    overlaps = [one for one in join.overlaps if 0 <= one.stack < len(measured.stacks)]
    of_stack, of_holder = _overlaps_by(overlaps, "stack"), _overlaps_by(overlaps, "holder")
    return replace(
        measured,
        stacks=[
            _with_holders(stack, of_stack.get(index, []), join.explained_by_stack_bytes.get(index, 0))
            for index, stack in enumerate(measured.stacks)
        ],
        holdings=[
            _with_stacks(holding, of_holder.get(index, []), measured.host.page_size_bytes)
            for index, holding in enumerate(measured.holdings)
        ],
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


def _with_stacks(holding: Holding, overlaps: Sequence[Overlap], page_bytes: int) -> Holding:
    pinned_bytes = pinned_together_bytes([holding], page_bytes=page_bytes)
    parts = [
        FilledBy(stack=one.stack, size_bytes=one.size_bytes, share=_share(one.size_bytes, pinned_bytes))
        for one in overlaps
    ]
    return replace(holding, holder=holding.holder.model_copy(update={"filled_by": parts}))


def _ledger(measured: Measurements, join: Join) -> Ledger | None:
    if measured.breakdown is None:
        return None
    page_bytes = measured.host.page_size_bytes
    holdings = [holding for holding in measured.holdings if holding.is_alloc_page]
    kinds = {holding.holder.kind for holding in holdings}
    held = {
        kind: _held_bytes([one for one in holdings if one.holder.kind is kind], page_bytes) for kind in sorted(kinds)
    }
    outstanding_bytes = measured.trace.outstanding_bytes if measured.trace else 0
    classes = measured.traced.memory_classes if measured.traced else ()
    explained_bytes = sum(
        size_bytes
        for stack, size_bytes in join.explained_by_stack_bytes.items()
        if 0 <= stack < len(classes) and classes[stack] == ClassName.ALLOC_PAGE
    )
    return ledger_of(
        measured.breakdown,
        held_by_kind_bytes=held,
        containers=_by_container(holdings, page_bytes),
        unheld_bytes=max(0, outstanding_bytes - explained_bytes),
    )


def _held_bytes(holdings: Sequence[Holding], page_bytes: int) -> int:
    """Return the bytes of allocpage that these holders pin."""
    listed_bytes = unique_bytes([one.alloc_page_blocks for one in holdings], page_bytes=page_bytes)
    return listed_bytes + sum(one.unlisted_bytes(page_bytes) for one in holdings)


def _by_container(holdings: Sequence[Holding], page_bytes: int) -> list[ContainerShare]:
    """Return the allocpage that the holders of each container pin. A holder belongs to its first owner."""
    blocks: dict[tuple[str, str], list[npt.NDArray[np.void]]] = {}
    for holding in holdings:
        for owner in holding.holder.owners[:1]:
            if owner.container_id:
                blocks.setdefault((owner.container_id, owner.pod_uid), []).append(holding.alloc_page_blocks)
    shares = [
        ContainerShare(container_id=container, pod_uid=pod, size_bytes=unique_bytes(held, page_bytes=page_bytes))
        for (container, pod), held in blocks.items()
    ]
    return sorted((one for one in shares if one.size_bytes), key=lambda one: -one.size_bytes)[: limits.MAX_CONTAINERS]


def _skipped(measured: Measurements) -> list[str]:
    """Return a note for each check that was skipped because of a missing need."""
    return [
        f"{check.value} was skipped: {need.detail or need.name}"
        for need in measured.needs
        if need.state is NeedState.MISSING
        for check in need.checks
    ]


def _unnamed(stacks: Sequence[Stack]) -> list[str]:
    """Return a note about stacks without any function name, if any."""
    unnamed = sum(first_name(stack.frames) is None for stack in stacks)
    if not unnamed:
        return []
    return [
        f"{unnamed} of {len(stacks)} call stacks have no function names: they are not evaluated, and no process is "
        "named for them"
    ]


def _share(part_bytes: int, whole_bytes: int) -> float:
    return min(1.0, part_bytes / whole_bytes) if whole_bytes else 0.0
