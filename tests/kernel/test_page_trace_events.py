"""page_trace.bpf.c, event by event: its programs run in the kernel on simulated allocations and frees.

They are attached to nothing, so no other event touches their tables.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.procfs.memory_map import SECTION_FRAMES, FrameRange
from memdiag_node.trace import common_tables
from memdiag_node.trace.pages import frame_tally, page_trace, uses
from memdiag_node.trace.pages import tables as page_tables
from memdiag_node.trace.pages.frame_layout import FrameLayout
from memdiag_node.trace.pages.result import GROUP_DTYPE
from support.bpf import run_raw_tracepoint, set_on_every_cpu
from support.trace_results import NO_BLOCKS

FIRST_PAGE = 0xFFFFEA0000000000
UNMOVABLE, MOVABLE = 0, 1
LAYOUT = FrameLayout([FrameRange(0, 2 * SECTION_FRAMES), FrameRange(7 * SECTION_FRAMES, 8 * SECTION_FRAMES)])
FRAMES = LAYOUT.entries
KERNEL = 0xCC0


class Machine:
    """The programs and their frame table."""

    def __init__(self, bpf: BpfObject, struct_page_bytes: int) -> None:
        self.bpf = bpf
        self._struct_page_bytes = struct_page_bytes
        self.config = bpf.view("config", page_tables.CONFIG_DTYPE, 1)
        self.frames = bpf.view("frames", np.dtype("<u2"), FRAMES)
        self.infos = bpf.view("class_info", page_tables.CLASS_INFO_DTYPE, page_tables.CLASSES)
        sections = bpf.view("sections", np.dtype("<u8"), LAYOUT.sections)
        sections[:] = LAYOUT.index()
        self.config["first_page"], self.config["end_frame"] = FIRST_PAGE, LAYOUT.end_frame
        page_trace._push_numbers(bpf, np.arange(page_tables.FIRST_CLASS, page_tables.CLASSES, dtype="<u4"))
        programs = ("on_alloc", "on_nested_alloc", "on_free")
        self._programs = {name: bpf.load_raw_tracepoint(name) for name in programs}

    def alloc(
        self,
        frame: int,
        order: int = 0,
        migratetype: int = UNMOVABLE,
        flags: int = KERNEL,
        *,
        program: str = "on_alloc",
    ) -> None:
        run_raw_tracepoint(self._programs[program], self._page(frame), order, flags, migratetype)

    def _page(self, frame: int) -> int:
        """The address of a frame's struct page; it wraps as pointers do in C."""
        return (FIRST_PAGE + frame * self._struct_page_bytes) % (1 << 64)

    def free(self, frame: int, order: int = 0) -> None:
        run_raw_tracepoint(self._programs["on_free"], self._page(frame), order)

    def outstanding(self, start: int, count: int) -> int:
        """Frames from `start` on that are outstanding in a recorded class."""
        part = self.frames[start : start + count] & page_tables.CLASS_MASK
        return int((part >= page_tables.FIRST_CLASS).sum())

    def tally(self) -> frame_tally.FrameTally:
        orders = np.array(self.infos["key"]["order"])
        return frame_tally.tally_frames(
            self.frames, orders, lambda _, frames: np.zeros(frames, np.uint64), layout=LAYOUT
        )

    def counter(self, name: str) -> int:
        return int(self.bpf.read_per_cpu("cpu", page_tables.CPU_DTYPE)[name].sum())


def interrupted_scratch(machine: Machine, levels: int) -> None:
    """Put the tables into the state in which programs in this many levels are interrupted, on every CPU."""
    for level in range(levels):
        set_on_every_cpu(machine.bpf, "scratch", np.array([(1,)], page_tables.SCRATCH_DTYPE), level)


@pytest.fixture
def machine() -> Iterator[Machine]:
    btf = Btf.load()
    with BpfObject(
        page_trace._SOURCE, {**page_trace._layout(btf), "SECTIONS": LAYOUT.sections, "CHUNKS": LAYOUT.chunks}
    ) as bpf:
        yield Machine(bpf, btf.size_bytes("page"))


@pytest.mark.parametrize("order", range(11))
def test_every_frame_of_a_block_is_out_until_it_is_freed(machine: Machine, order: int) -> None:
    machine.alloc(2048, order)
    assert machine.outstanding(0, FRAMES) == machine.outstanding(2048, 1 << order) == 1 << order
    machine.free(2048, order)
    assert machine.outstanding(0, FRAMES) == 0


def test_a_split_block_counts_with_what_is_still_out(machine: Machine) -> None:
    machine.alloc(1024, 4)
    for frame in range(1024 + 10, 1024 + 16):  # as alloc_pages_exact does with the pages that it does not need
        machine.free(frame, 0)
    tally = machine.tally()
    (block,) = tally.parts[0]
    assert (int(block["frame"]), int(block["frames"])) == (1024, 10)
    machine.free(1024, 3)
    machine.free(1032, 1)
    assert machine.outstanding(0, FRAMES) == 0


def test_a_missed_free_is_corrected_by_the_next_allocation(machine: Machine) -> None:
    machine.alloc(512, 3)
    machine.alloc(512, 0)  # the free of order 3 was missed
    machine.free(512, 0)
    machine.alloc(512 + 4, 2, MOVABLE)
    assert machine.outstanding(512, 8) == 3
    machine.alloc(512, 3)
    assert machine.outstanding(512, 8) == 8


def test_neighbours_are_left_alone(machine: Machine) -> None:
    for frame in range(64, 128):
        machine.alloc(frame)
    machine.free(80, 4)
    assert machine.outstanding(64, 64) == 48
    assert machine.outstanding(80, 16) == 0


def test_a_free_of_what_was_never_seen_changes_nothing(machine: Machine) -> None:
    machine.free(100, 0)
    machine.free(128, 5)
    assert not machine.frames.any()


def test_user_memory_is_marked_separately(machine: Machine) -> None:
    machine.alloc(512, 9, MOVABLE)
    assert set(machine.frames[512:1024].tolist()) == {page_tables.CLASS_MOVABLE}
    assert machine.counter("movable_pages") == 512


def test_a_failed_allocation_is_ignored(machine: Machine) -> None:
    run_raw_tracepoint(machine._programs["on_alloc"], 0, 3, KERNEL, UNMOVABLE)
    assert not machine.frames.any()
    assert machine.counter("lost_blocks") == 0


def test_frames_after_a_hole_are_recorded_and_freed(machine: Machine) -> None:
    machine.alloc(7 * SECTION_FRAMES + 64, 3)
    assert machine.outstanding(2 * SECTION_FRAMES + 64, 8) == machine.outstanding(0, FRAMES) == 8
    (block,) = machine.tally().parts[0]
    assert int(block["frame"]) == 7 * SECTION_FRAMES + 64
    machine.free(7 * SECTION_FRAMES + 64, 3)
    assert machine.outstanding(0, FRAMES) == 0


@pytest.mark.parametrize("frame", [3 * SECTION_FRAMES, 8 * SECTION_FRAMES, (1 << 40) - 4, -64])
def test_frames_outside_memory_are_counted_as_lost(machine: Machine, frame: int) -> None:
    machine.alloc(frame, 2)
    machine.free(frame, 2)
    assert not machine.frames.any()
    assert machine.counter("lost_blocks") == 1
    assert machine.counter("lost_pages") == 4


def test_slices_and_orders_have_separate_classes(machine: Machine) -> None:
    for slice_number in range(3):
        machine.config["slice"] = slice_number
        machine.alloc(slice_number * 64, 0)
        machine.alloc(slice_number * 64 + 8, 3)
    used = machine.infos[machine.infos["allocated_pages"] > 0]
    assert sorted(zip(used["key"]["slice"].tolist(), used["key"]["order"].tolist(), strict=True)) == [
        (slice_number, order) for slice_number in range(3) for order in (0, 3)
    ]


def take_all_numbers(machine: Machine, queue: str) -> None:
    table = machine.bpf.table(queue)
    with contextlib.suppress(KeyError):
        while True:
            table.pop()


def test_when_no_class_is_left_for_processes_their_stacks_are_kept(machine: Machine) -> None:
    take_all_numbers(machine, "spare_classes")
    for frame in range(64, 68):
        machine.alloc(frame)
    assert machine.outstanding(64, 4) == 4
    used = machine.infos[machine.infos["allocated_pages"] > 0]
    assert set(used["key"]["tgid"].tolist()) == {0}
    assert all(used["key"]["stack"] != 0)
    assert (machine.counter("unnamed_blocks"), machine.counter("lost_blocks")) == (4, 0)


def test_when_no_class_is_left_blocks_are_out_but_lost(machine: Machine) -> None:
    take_all_numbers(machine, "spare_classes")
    take_all_numbers(machine, "reserve_classes")
    machine.alloc(64, 2)
    assert set(machine.frames[64:68].tolist()) == {page_tables.CLASS_LOST}
    assert machine.counter("lost_blocks") == 1


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_what_interrupts_another_program_is_recorded_with_its_stack(machine: Machine, levels: int) -> None:
    interrupted_scratch(machine, levels)
    machine.alloc(64, 2)
    assert machine.outstanding(64, 4) == 4
    assert machine.counter("nested") == 1
    (used,) = machine.infos[machine.infos["allocated_pages"] > 0]
    assert used["key"]["stack"] != 0


def test_beyond_the_last_level_blocks_are_out_but_lost(machine: Machine) -> None:
    interrupted_scratch(machine, 4)
    machine.alloc(64, 2)
    assert set(machine.frames[64:68].tolist()) == {page_tables.CLASS_LOST}
    assert (machine.counter("interrupted"), machine.counter("lost_blocks")) == (1, 1)


def test_an_allocation_that_interrupts_the_program_is_left_to_the_second_one(machine: Machine) -> None:
    """The kernel would not run on_alloc a second time on that CPU."""
    machine.alloc(64, 2)
    machine.alloc(128, 2, program="on_nested_alloc")
    assert machine.outstanding(128, 4) == 4
    assert machine.counter("nested_allocs") == 1


def test_what_on_alloc_has_recorded_is_not_recorded_by_the_second_program(machine: Machine) -> None:
    machine.alloc(64, 2)
    machine.alloc(64, 2, program="on_nested_alloc")
    machine.alloc(128, 2)  # an interrupt between the two programs
    machine.alloc(64, 2, program="on_nested_alloc")
    assert (machine.counter("events"), machine.counter("nested_allocs")) == (2, 0)
    assert machine.infos["allocated_blocks"].sum() == 2


def test_a_rare_large_block_stays_whole_under_a_storm_of_pages(machine: Machine) -> None:
    machine.config["budget_permille"] = 1
    for frame in range(8192):
        machine.alloc(frame % 4096)
    thinned_before = machine.counter("thinned_events")
    for block in range(20):
        machine.alloc(16384 + 8 * block, 3)
        for frame in range(64):
            machine.alloc(frame)
    assert thinned_before > 0
    assert machine.counter("thinned_large_events") == 0
    assert machine.outstanding(16384, 160) == 160


def test_a_storm_of_large_blocks_is_thinned(machine: Machine) -> None:
    machine.config["budget_permille"] = 1
    for block in range(8000):
        machine.alloc(8 * (block % 4000), 1 + block % 3)
    thinned = machine.counter("thinned_large_events")
    assert thinned == machine.counter("thinned_events")
    assert 4000 <= thinned < 8000
    for order in (1, 2, 3):
        assert int((machine.frames == page_tables.CLASS_THINNED + order).sum()) > 0


def test_a_storm_stays_thinned_though_most_rounds_record_nothing(machine: Machine) -> None:
    """A round in which nothing was recorded says nothing about the load: all of the next round must not be recorded."""
    machine.config["budget_permille"] = 1
    for number in range(20_000):
        machine.alloc(number % 4096)
    assert machine.counter("thinned_events") >= 18_000


def test_the_first_blocks_after_a_storm_are_recorded_again(machine: Machine) -> None:
    """Once the budget is enough for every event of a round."""
    machine.config["budget_permille"] = 1
    for number in range(8_000):
        machine.alloc(number % 4096)
    machine.config["budget_permille"] = 100_000
    for number in range(1024):
        machine.alloc(8192 + number)
    assert machine.outstanding(8192 + 512, 512) == 512


def test_after_a_short_pause_all_but_sixteen_blocks_are_recorded(machine: Machine) -> None:
    """The storm's last round need not be over: its time is enough for all of its blocks by then."""
    machine.config["budget_permille"] = 30
    for pause in range(10):
        for number in range(6_000 + 37 * pause):
            machine.alloc(number % 4096)
        thinned_before = machine.counter("thinned_events")
        time.sleep(0.04)
        for number in range(64):
            machine.alloc(8192 + number)
        assert machine.counter("thinned_events") - thinned_before <= 16
        assert thinned_before > 2_000 * (pause + 1), "the storm was not thinned out"


def test_a_cgroup_without_room_is_counted(machine: Machine) -> None:
    names = np.zeros(page_trace._CGROUPS, common_tables.CGROUP_ENTRY_DTYPE)
    names["key"] = np.arange(1, len(names) + 1) + (1 << 60)
    machine.bpf.update("cgroups", names["key"], names["value"])
    machine.alloc(64)
    assert machine.outstanding(64, 1) == 1
    assert machine.counter("lost_cgroups") == 1


def test_a_rare_kind_of_allocation_stays_whole_under_a_storm_of_another(machine: Machine) -> None:
    machine.config["budget_permille"] = 1
    rare = 0x400CC0
    for round_number in range(20):
        for frame in range(512):
            machine.alloc(frame)
        machine.alloc(8192 + round_number, flags=rare)
    assert machine.counter("thinned_events") > 0
    assert machine.outstanding(8192, 20) == 20


def estimate(machine: Machine, slice_number: int) -> tuple[float, float]:
    """The trace's estimate of the frames of a slice's blocks, and its standard error."""
    frames = machine.tally().by_kind[FrameKind.DIRECT]
    used = np.flatnonzero(frames[page_tables.FIRST_CLASS :]) + page_tables.FIRST_CLASS
    weights = uses.class_weights(machine.infos["key"][used], frames[used], frames)
    groups = np.zeros(len(used), GROUP_DTYPE)
    groups["slice"], groups["frames"], groups["weight"] = machine.infos["key"]["slice"][used], frames[used], weights
    groups["order"] = machine.infos["key"]["order"][used]
    of_slice = groups[groups["slice"] == slice_number]
    error = replace(NO_BLOCKS, groups=groups).error_bytes(of_slice)
    return float((of_slice["frames"] * of_slice["weight"]).sum()), error


@pytest.mark.parametrize("orders", [(0,), (1, 2, 3)], ids=["order 0", "orders 1 to 3"])
def test_thinned_figures_are_within_their_stated_uncertainty(machine: Machine, orders: tuple[int, ...]) -> None:
    """600 repetitions of one load: nearly always within two standard errors of the true value, and right on average.

    Measured: 93 to 96 % of them, 99 % within three. With 100 repetitions, less than 90 would be within two in one of
    20 runs.
    """
    repetitions = 600
    machine.config["budget_permille"] = 100  # one in 8 is recorded: some 80 blocks of each order, at least 30
    blocks = [(8 * number, orders[number % len(orders)], number % 4 == 0) for number in range(2000)]
    truth, within_two, within_three, deviations = sum(1 << order for _, order, chosen in blocks if chosen), 0, 0, []
    for _ in range(repetitions):
        machine.frames[:] = 0
        for frame, order, chosen in blocks:
            machine.config["slice"] = chosen
            machine.alloc(frame, order)
        estimated, error = estimate(machine, 1)
        within_two += abs(estimated - truth) <= 2 * error
        within_three += abs(estimated - truth) <= 3 * error
        deviations.append((estimated - truth) / truth)
    assert machine.counter("thinned_events") > 0
    assert within_two >= 0.90 * repetitions
    assert within_three >= 0.95 * repetitions
    assert abs(float(np.mean(deviations))) < 0.1
