"""The breakdown against loads of known size, on this machine's own kernel.

Other work on the machine changes its memory too, perhaps steadily. So a load is planted and released several times, and
its effect is measured against the straight line between the readings before and after it. A round in which the classes
do not return to that line is not used, and the median of the others is judged, once.
"""

import os
import statistics
import time
from dataclasses import dataclass
from typing import Self

import pytest

from memdiag_api.evidence import Breakdown
from memdiag_api.units import format_bytes
from memdiag_node.breakdown.classes import breakdown
from memdiag_node.breakdown.reading import READING_GAP_SECONDS, take_readings
from memdiag_node.procfs.roots import HostRoots
from planted.memory import MIB, PlantedMemory
from support.machine_noise import measure_alloc_page_noise, too_busy

ALLOC_PAGE_TOLERANCE_BYTES = 3 * MIB
OTHER_TOLERANCE_BYTES = 6 * MIB  # the memory of any process changes these
QUIET_ROUNDS = 5
ROUNDS = 40
SETTLE_SECONDS = 0.2
RELEASE_SECONDS = 1.0
FREED_READINGS = 8  # over more than 2 s, the time that a balloon driver waits before it reports
FREED_TOLERANCE_BYTES = 16 * MIB


@dataclass(frozen=True, slots=True)
class Measurement:
    breakdown: Breakdown
    at_seconds: float

    def size_bytes(self, name: str) -> int:
        return next((line.size_bytes for line in self.breakdown.classes if line.name == name), 0)

    def off_line_bytes(self, name: str, first: Self, second: Self) -> float:
        """The distance of the class from the straight line through two other measurements."""
        slope = (second.size_bytes(name) - first.size_bytes(name)) / (second.at_seconds - first.at_seconds)
        return self.size_bytes(name) - first.size_bytes(name) - slope * (self.at_seconds - first.at_seconds)


def measure() -> Measurement:
    started = time.monotonic()
    # Close to each other: a measurement with missing free pages is off the line.
    found = breakdown(take_readings(HostRoots(), gap_seconds=READING_GAP_SECONDS))
    assert_closes(found)
    return Measurement(found, (started + time.monotonic()) / 2)


def quiet_bytes(name: str) -> int:
    return (ALLOC_PAGE_TOLERANCE_BYTES if name == "AllocPage" else OTHER_TOLERANCE_BYTES) // 3


def measure_released(earlier: Measurement, before: Measurement, names: set[str]) -> Measurement | None:
    """A measurement after the release in line with the two before; the kernel frees some memory with a delay."""
    deadline = time.monotonic() + RELEASE_SECONDS
    while time.monotonic() < deadline:
        after = measure()
        if all(abs(after.off_line_bytes(name, earlier, before)) <= quiet_bytes(name) for name in names):
            return after
    return None


def movement(kind: str, planted_bytes: int, names: set[str]) -> dict[str, float]:
    """The change of each class minus what the child itself counted; the median of the quiet rounds."""
    excess_bytes: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(ROUNDS):
        with PlantedMemory(kind, planted_bytes) as load:
            earlier = measure()
            time.sleep(SETTLE_SECONDS)
            before = measure()
            true_bytes = load.plant()
            during = measure()
            load.release()
            after = measure_released(earlier, before, names)
        if after is None:
            continue
        for name, found in excess_bytes.items():
            found.append(during.off_line_bytes(name, before, after) - true_bytes)
        if all(len(found) == QUIET_ROUNDS for found in excess_bytes.values()):
            return {name: statistics.median(found) for name, found in excess_bytes.items()}
    noise = "; ".join(f"{name} by more than {format_bytes(quiet_bytes(name))}" for name in sorted(names))
    raise too_busy(f"in {ROUNDS} rounds there were not {QUIET_ROUNDS} in which nothing but the load moved {noise}")


def assert_closes(of: Breakdown) -> None:
    """The classes add up to what sysinfo(2) calls the total memory."""
    assert sum(line.size_bytes for line in of.classes) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("kind", "planted_mib"), [("pipes", 200), ("packet_ring", 64), ("tcp_queues", 100)])
def test_memory_straight_from_the_buddy_allocator_is_allocpage(kind: str, planted_mib: int) -> None:
    excess_bytes = movement(kind, planted_mib * MIB, {"AllocPage"})
    assert abs(excess_bytes["AllocPage"]) <= ALLOC_PAGE_TOLERANCE_BYTES


@pytest.mark.parametrize(
    ("kind", "planted_mib", "name"),
    [
        ("anon", 100, "AnonPages"),
        ("huge_anon", 100, "AnonPages"),
        ("locked_anon", 100, "AnonPages"),
        ("file", 64, "FileCache"),
        ("shmem", 100, "Shmem"),
        ("locked_shmem", 100, "Shmem"),
        ("page_tables", 60, "PageTables"),
        ("thread_stacks", 32, "KernelStack"),
    ],
)
def test_counted_memory_moves_its_own_class_and_not_allocpage(kind: str, planted_mib: int, name: str) -> None:
    planted_bytes = planted_mib * MIB
    excess_bytes = movement(kind, planted_bytes, {"AllocPage", name})
    assert abs(excess_bytes[name]) <= OTHER_TOLERANCE_BYTES
    assert abs(excess_bytes["AllocPage"] + planted_bytes) <= ALLOC_PAGE_TOLERANCE_BYTES


def test_small_datagrams_are_slab_and_not_allocpage() -> None:
    """A datagram of 1,000 bytes takes 2 KiB of slab memory plus a descriptor."""
    excess_bytes = movement("small_datagrams", 64 * 1000 * 1000, {"AllocPage", "SUnreclaim"})
    assert excess_bytes["SUnreclaim"] >= 64 * 1000 * 1000
    assert abs(excess_bytes["AllocPage"] + 64 * 1000 * 1000) <= ALLOC_PAGE_TOLERANCE_BYTES


def test_the_change_over_a_window_is_the_load() -> None:
    excess_bytes = []
    noise = measure_alloc_page_noise(1.0)
    for _ in range(QUIET_ROUNDS):
        with PlantedMemory("pipes", 64 * MIB) as load:
            earlier = take_readings(HostRoots())
            true_bytes = load.plant()
            found = breakdown(take_readings(HostRoots()), earlier=earlier)
        excess_bytes.append(found.alloc_page_change_bytes - true_bytes)
    assert abs(statistics.median(excess_bytes)) <= noise.tolerated_bytes(ALLOC_PAGE_TOLERANCE_BYTES), str(noise)


def test_memory_that_was_just_freed_is_free_and_not_allocpage() -> None:
    """It goes to per-CPU lists, and in a virtual machine it may be reported to the hypervisor some seconds later."""
    noise = measure_alloc_page_noise(2.0)
    before_bytes = breakdown(take_readings(HostRoots())).alloc_page_bytes
    with PlantedMemory("anon", 1024 * MIB) as load:
        load.plant()
    excess_bytes: list[int] = []
    while len(excess_bytes) < FREED_READINGS:
        excess_bytes.append(breakdown(take_readings(HostRoots())).alloc_page_bytes - before_bytes)
    assert max(map(abs, excess_bytes)) <= noise.tolerated_bytes(FREED_TOLERANCE_BYTES), str(noise)
