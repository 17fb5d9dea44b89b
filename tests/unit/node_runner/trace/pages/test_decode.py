"""The decoder on a recorded trace, and on damaged tables: it must not trust what a map holds."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdiag_api.evidence import Context, Stack
from memdiag_node.kernel.symbols import Symbols
from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.trace.contexts import Contexts
from memdiag_node.trace.pages import decode, tables, uses
from memdiag_node.trace.pages.frame_layout import MAX_ORDER
from memdiag_node.trace.pages.result import TraceResult
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.stacks import first_name
from support.raw_trace import load

MIB = 1 << 20
PAGE_BYTES = 4096
SLAB_FLAG = 1 << 7


@pytest.fixture(scope="module")
def recorded() -> TraceResult:
    raw, symbols, contexts = load()
    return decode.decode(raw, symbols, np.array(contexts, np.uint8))


def stack_with(result: TraceResult, function: str) -> Stack:
    return next(
        one for one in page_stacks(result, len(result.stacks)) if any(f.startswith(function) for f in one.frames)
    )


def test_planted_pipes_and_ring_are_found(recorded: TraceResult) -> None:
    pipes, ring = stack_with(recorded, "anon_pipe_write"), stack_with(recorded, "packet_set_ring")
    assert abs(pipes.outstanding_bytes - 4 * MIB) <= 2 * pipes.error_bytes + 16 * PAGE_BYTES
    assert ring.outstanding_bytes == 4 * MIB
    assert ring.outstanding_by_order == {"4": 64}
    assert {pipes.context, ring.context} == {Context.PROCESS}
    assert recorded.counters.set_aside_bytes["PageTables"] >= MIB


def test_stacks_are_in_order_and_blocks_point_to_them(recorded: TraceResult) -> None:
    sizes = [stack.outstanding_bytes for stack in page_stacks(recorded, len(recorded.stacks))]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)
    by_block = np.bincount(
        recorded.blocks["stack"], recorded.blocks["frames"] * recorded.blocks["weight"], minlength=len(sizes)
    )
    is_direct = np.array([name not in {"Slab", "PageTables"} for name in recorded.memory_classes])
    assert np.allclose(by_block * PAGE_BYTES, np.where(is_direct, sizes, 0), rtol=1e-4)
    assert set(recorded.groups["process"].tolist()) <= set(range(-1, len(recorded.processes)))


def test_pages_that_only_a_pool_shows_are_events_that_may_be_thinned_out() -> None:
    raw, symbols, contexts = load()
    cpus = np.zeros(2, tables.CPU_DTYPE)
    cpus["events"], cpus["movable_events"] = [100, 0], [60, 0]
    cpus["pool_events"], cpus["thinned_events"] = [0, 160], [20, 130]
    counters = decode.decode(dataclasses.replace(raw, cpus=cpus), symbols, np.array(contexts, np.uint8)).counters
    assert (counters.events_seen, counters.events_sampled_out) == (260, 150)
    assert counters.sampled_share == pytest.approx(0.25)


def test_what_vmalloc_allocated_counts_freed_or_not() -> None:
    """In the recorded trace, nothing of it is outstanding: a stack of which much was freed becomes one of vmalloc."""
    raw, symbols, contexts = load()
    infos, stacks = raw.infos.copy(), raw.stacks.copy()
    stack = int(stacks["key"][0])
    number = int(np.flatnonzero(infos["allocated_pages"] == 0)[-1])
    infos["key"]["stack"][number], infos["key"]["level"][number], infos["allocated_pages"][number] = stack, 2, 300
    stacks["value"]["address"][0] = 0
    stacks["value"]["address"][0][0] = 0x1234
    raw = dataclasses.replace(raw, infos=infos, stacks=stacks, retired={stack: (100.0, 100.0)})
    assert 0x1234 in decode.named_addresses(raw)
    symbols = {**symbols, 0x1234: "__vmalloc_area_node+0x10"}
    before = sum(pages for one, pages in decode._allocated_pages(raw).items() if one == stack)
    assert before >= 4 * 300 + 100
    result = decode.decode(raw, symbols, np.array(contexts, np.uint8))
    assert result.vmalloc_page_bytes == round(before) * raw.page_bytes


def test_no_address_is_left_in_what_is_published(recorded: TraceResult) -> None:
    for stack in page_stacks(recorded, 64):
        assert "0xffff" not in stack.model_dump_json()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_tables_give_a_result(data: st.DataObject) -> None:
    raw, symbols, contexts = load()
    damaged = {}
    for name in ("infos", "stacks", "cgroups", "lives"):
        table = getattr(raw, name).copy()
        text = table.view(np.uint8).reshape(-1)
        for _ in range(data.draw(st.integers(0, 20))):
            text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
        damaged[name] = table
    raw = dataclasses.replace(raw, **damaged)
    symbols = {address: symbols.get(address, "unnamed#0a1b2c3d") for address in decode.named_addresses(raw)}
    result = decode.decode(raw, symbols, np.array(contexts, np.uint8))
    for stack in page_stacks(result, 64):
        assert stack.outstanding_bytes >= 0


def test_without_any_name_stacks_stay_apart_and_no_process_is_named(recorded: TraceResult) -> None:
    raw, _, _ = load()
    symbols = Symbols(None)
    result = decode.decode(
        raw, symbols.texts(decode.named_addresses(raw)), Contexts(symbols).of(raw.stacks["value"]["address"])
    )
    assert len(result.stacks) >= len(recorded.stacks) > 1
    assert result.groups["frames"].sum() == recorded.groups["frames"].sum()
    assert recorded.processes
    assert not result.processes
    for stack in page_stacks(result, 64):
        assert first_name(stack.frames) is None
        assert (stack.context, stack.processes) == (Context.MIXED, [])


def test_orders_above_0_are_weighed_by_what_was_left_out_of_them() -> None:
    raw, symbols, contexts = load()
    infos = raw.infos.copy()
    infos["key"]["level"] = np.where(infos["key"]["order"] > 0, 2, infos["key"]["level"])
    by_kind = raw.tally.by_kind.copy()
    before = decode.decode(raw, symbols, np.array(contexts, np.uint8))
    for order in range(1, MAX_ORDER + 1):
        of_order = (infos["key"]["order"] == order) & (infos["allocated_pages"] > 0)
        by_kind[FrameKind.DIRECT, tables.CLASS_THINNED + order] = 2 * int(by_kind[FrameKind.DIRECT][of_order].sum())
    raw = dataclasses.replace(raw, infos=infos, tally=dataclasses.replace(raw.tally, by_kind=by_kind))
    result = decode.decode(raw, symbols, np.array(contexts, np.uint8))
    groups = result.groups[result.groups["frames"] > 0]
    assert groups["weight"][(groups["order"] > 0) & groups["is_direct"]] == pytest.approx(3.0)
    ring = stack_with(result, "packet_set_ring")
    assert ring.outstanding_bytes == 3 * 4 * MIB
    assert ring.error_bytes >= 0
    pipes, pipes_before = stack_with(result, "anon_pipe_write"), stack_with(before, "anon_pipe_write")
    assert (pipes.outstanding_bytes, pipes.error_bytes) == (pipes_before.outstanding_bytes, pipes_before.error_bytes)


def test_weights_are_scaled_to_match_the_exact_sum() -> None:
    levels, frames = np.array([0, 2, 3], np.uint8), np.array([10, 4, 2], np.int64)
    weights = uses.calibrated_weights(levels, frames, 13)
    assert weights[0] == 1
    assert float((frames * (weights - 1)).sum()) == pytest.approx(13)
    assert uses.calibrated_weights(levels, frames * 0, 13).tolist() == [1, 4, 8]
