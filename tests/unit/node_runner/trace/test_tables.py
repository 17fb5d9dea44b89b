"""The decoder on a recorded trace, and on damaged tables: it must not trust what a map holds."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdiag_api.evidence import Context, Stack
from memdiag_node.kernel.symbols import Symbols
from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange
from memdiag_node.trace import tables
from memdiag_node.trace.contexts import Contexts
from memdiag_node.trace.frame_layout import FrameLayout
from memdiag_node.trace.result import TraceResult
from memdiag_node.trace.stacks import first_name, fold_stacks
from support.raw_trace import load

MIB = 1 << 20
PAGE_BYTES = 4096
SLAB_FLAG = 1 << 7


@pytest.fixture(scope="module")
def recorded() -> TraceResult:
    raw, symbols, contexts = load()
    return tables.decode(raw, symbols, np.array(contexts, np.uint8))


def stack_with(result: TraceResult, function: str) -> Stack:
    return next(
        one for one in fold_stacks(result, len(result.stacks)) if any(f.startswith(function) for f in one.frames)
    )


def test_planted_pipes_and_ring_are_found(recorded: TraceResult) -> None:
    pipes, ring = stack_with(recorded, "anon_pipe_write"), stack_with(recorded, "packet_set_ring")
    assert abs(pipes.outstanding_bytes - 4 * MIB) <= 2 * pipes.error_bytes + 16 * PAGE_BYTES
    assert ring.outstanding_bytes == 4 * MIB
    assert ring.outstanding_by_order == {"4": 64}
    assert {pipes.context, ring.context} == {Context.PROCESS}
    assert recorded.counters.set_aside_bytes["PageTables"] >= MIB


def test_stacks_are_in_order_and_blocks_point_to_them(recorded: TraceResult) -> None:
    sizes = [stack.outstanding_bytes for stack in fold_stacks(recorded, len(recorded.stacks))]
    assert sizes == sorted(sizes, reverse=True)
    assert all(sizes)
    by_block = np.bincount(recorded.blocks["stack"], recorded.blocks["frames"] * recorded.blocks["weight"])
    assert np.allclose(by_block * PAGE_BYTES, sizes, rtol=1e-4)
    assert set(recorded.groups["process"].tolist()) <= set(range(-1, len(recorded.processes)))


def test_pages_that_only_a_pool_shows_are_events_that_may_be_thinned_out() -> None:
    raw, symbols, contexts = load()
    cpus = np.zeros(2, tables.CPU_DTYPE)
    cpus["events"], cpus["movable_events"] = [100, 0], [60, 0]
    cpus["pool_events"], cpus["thinned_events"] = [0, 160], [20, 130]
    counters = tables.decode(dataclasses.replace(raw, cpus=cpus), symbols, np.array(contexts, np.uint8)).counters
    assert (counters.events_seen, counters.events_sampled_out) == (260, 150)
    assert counters.sampled_share == pytest.approx(0.25)


def test_no_address_is_left_in_what_is_published(recorded: TraceResult) -> None:
    for stack in fold_stacks(recorded, 64):
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
    symbols = {address: symbols.get(address, "unnamed#0a1b2c3d") for address in tables.outstanding_addresses(raw)}
    result = tables.decode(raw, symbols, np.array(contexts, np.uint8))
    for stack in fold_stacks(result, 64):
        assert stack.outstanding_bytes >= 0


def test_without_any_name_stacks_stay_apart_and_no_process_is_named(recorded: TraceResult) -> None:
    raw, _, _ = load()
    symbols = Symbols(None)
    result = tables.decode(
        raw, symbols.texts(tables.outstanding_addresses(raw)), Contexts(symbols).of(raw.stacks["value"]["address"])
    )
    assert len(result.stacks) >= len(recorded.stacks) > 1
    assert result.groups["frames"].sum() == recorded.groups["frames"].sum()
    assert recorded.processes
    assert not result.processes
    for stack in fold_stacks(result, 64):
        assert first_name(stack.frames) is None
        assert (stack.context, stack.processes) == (Context.MIXED, [])


def tally_frames(
    frames: npt.NDArray[np.uint16],
    orders: npt.NDArray[np.uint8],
    read_flags: tables.ReadFrames,
    read_charges: tables.ReadFrames | None = None,
    ranges: Sequence[FrameRange] = (),
) -> tables.FrameTally:
    layout = FrameLayout(ranges or [FrameRange(0, len(frames))])
    return tables.tally_frames(frames, orders, read_flags, read_charges, layout=layout)


def flags_of(kinds: dict[int, int]) -> tables.ReadFrames:
    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        return np.array([kinds.get(frame, 0) for frame in range(first, first + count)], np.uint64)

    return read


def orders_of(**orders: int) -> npt.NDArray[np.uint8]:
    result = np.zeros(tables.CLASSES, np.uint8)
    for name, order in orders.items():
        result[int(name[1:])] = order
    return result


def test_frames_of_a_block_are_put_together_and_neighbours_kept_apart() -> None:
    frames = np.zeros(4096, np.uint16)
    frames[8:16] = 10  # whole block of order 3
    frames[16:21] = 10  # its neighbour, with three frames freed
    frames[24] = 11
    frames[25] = 11 | 0x8000  # timed, otherwise the same
    frames[2048:2052] = 10
    tally = tally_frames(frames, orders_of(c10=3, c11=0), flags_of({}))
    (part,) = tally.parts
    assert part.tolist() == [(8, 10, 8), (16, 10, 5), (24, 11, 1), (25, 11, 1), (2048, 10, 4)]
    assert (tally.blocks[10], tally.blocks[11]) == (3, 2)


def test_frames_after_a_hole_keep_their_number() -> None:
    last_section = (1 << 46) // PAGE_BYTES - SECTION_FRAMES  # the end of a 46-bit address space
    frames = np.zeros(2 * SECTION_FRAMES, np.uint16)
    frames[8:10] = 10
    frames[SECTION_FRAMES + 6 : SECTION_FRAMES + 8] = 10
    asked: list[int] = []

    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        asked.append(count)
        return np.zeros(count, np.uint64)

    ranges = [FrameRange(0, SECTION_FRAMES), FrameRange(last_section, last_section + SECTION_FRAMES)]
    tally = tally_frames(frames, orders_of(c10=1), read, ranges=ranges)
    blocks = [tuple(block) for part in tally.parts for block in part.tolist()]
    assert blocks == [(8, 10, 2), (last_section + 6, 10, 2)]
    assert sum(asked) <= 2 * SECTION_FRAMES


def test_frames_that_are_something_else_are_set_aside() -> None:
    frames = np.zeros(1024, np.uint16)
    frames[0:4] = 12
    frames[4:8] = tables.CLASS_MOVABLE
    tally = tally_frames(frames, orders_of(c12=0), flags_of({0: SLAB_FLAG, 1: SLAB_FLAG, 5: 1 << 12}))
    assert tally.by_kind[FrameKind.SLAB, 12] == tally.by_kind[FrameKind.DIRECT, 12] == 2
    assert tally.by_kind[FrameKind.USER_MEMORY, tables.CLASS_MOVABLE] == 1
    assert tally.blocks[12] == 2


def test_a_frame_that_is_freed_while_its_flags_are_read_does_not_count() -> None:
    frames = np.full(1024, 12, np.uint16)

    def read(first: int, count: int) -> npt.NDArray[np.uint64]:
        frames[100:200] = 0
        return np.zeros(count, np.uint64)

    assert tally_frames(frames, orders_of(c12=0), read).by_kind.sum() == 1024 - 100


def test_blocks_are_charged_by_their_first_frame() -> None:
    frames = np.zeros(1024, np.uint16)
    frames[8:16] = 10
    frames[32:34] = 11
    tally = tally_frames(frames, orders_of(c10=3, c11=0), flags_of({}), flags_of({8: 77, 32: 77, 33: 78}))
    assert tally.charged == {77: 9, 78: 1}


@settings(deadline=None)
@given(st.binary(min_size=2048, max_size=2048), st.integers(0, 10))
def test_any_frame_table_is_tallied_completely(entries: bytes, order: int) -> None:
    frames = np.frombuffer(entries, np.uint16)
    orders = np.full(tables.CLASSES, order, np.uint8)
    tally = tally_frames(frames, orders, flags_of({}))
    assert tally.by_kind.sum() == np.count_nonzero(frames & tables.CLASS_MASK)
    assert sum(int(part["frames"].sum()) for part in tally.parts) == tally.by_kind[0, tables.FIRST_CLASS :].sum()


def test_orders_above_0_are_weighed_by_what_was_left_out_of_them() -> None:
    raw, symbols, contexts = load()
    infos = raw.infos.copy()
    infos["key"]["level"] = np.where(infos["key"]["order"] > 0, 2, infos["key"]["level"])
    by_kind = raw.tally.by_kind.copy()
    before = tables.decode(raw, symbols, np.array(contexts, np.uint8))
    large = infos["key"]["order"] > 0
    recorded = int(by_kind[FrameKind.DIRECT][large & (infos["allocated_pages"] > 0)].sum())
    by_kind[FrameKind.DIRECT, tables.CLASS_THINNED_LARGE] = 2 * recorded
    raw = dataclasses.replace(raw, infos=infos, tally=dataclasses.replace(raw.tally, by_kind=by_kind))
    result = tables.decode(raw, symbols, np.array(contexts, np.uint8))
    groups = result.groups[result.groups["frames"] > 0]
    assert groups["weight"][groups["order"] > 0] == pytest.approx(3.0)
    ring = stack_with(result, "packet_set_ring")
    assert ring.outstanding_bytes == 3 * 4 * MIB
    assert ring.error_bytes >= 0
    pipes, pipes_before = stack_with(result, "anon_pipe_write"), stack_with(before, "anon_pipe_write")
    assert (pipes.outstanding_bytes, pipes.error_bytes) == (pipes_before.outstanding_bytes, pipes_before.error_bytes)


def test_weights_are_scaled_to_match_the_exact_sum() -> None:
    levels, frames = np.array([0, 2, 3], np.uint8), np.array([10, 4, 2], np.int64)
    weights = tables.calibrated_weights(levels, frames, 13)
    assert weights[0] == 1
    assert float((frames * (weights - 1)).sum()) == pytest.approx(13)
    assert tables.calibrated_weights(levels, frames * 0, 13).tolist() == [1, 4, 8]
