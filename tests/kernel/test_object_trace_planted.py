"""The trace of objects against loads of known rate: the whole product on this machine's own kernel.

Each load is a process that allocates all the time, from before the window until after it, so its rate times the length
of the window is what must be outstanding. Slab objects are a sample, and the document states its error.
"""

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from accuracy.judge import slab_growth
from memdiag_api.evidence import AllocationUnit, Context, Evidence, Stack
from planted.cases import CASES, plant
from planted.cases.case import UnavailableError
from planted.steady import ARRAY_BYTES, PERCPU_VALUE_BYTES, PERCPU_VALUES, Counted, SteadyLoad, steady

WINDOW_SECONDS, LONGER_WINDOW_SECONDS = 12, 20
TOLERANCE = 0.05
# Of a sample, one figure in 20 is beyond two standard errors, and many are compared; one in 16,000 is beyond four.
ERRORS = 4
STORM_DATAGRAMS = 150_000
LEAST_STORM_OBJECTS = 200_000
LEAK_BYTES_PER_MINUTE = 1 << 20
CHURN_RUNS = 1
CHURN_CASES = [name for name, case in CASES.items() if name.startswith("churn_")]

pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True)
class Planted:
    """Objects that each step of a load allocates through one function."""

    load: str
    per_second: int
    cache: str
    """A regular expression for its name: it depends on the kernel's configuration. Empty: no slab."""
    function: str
    memory_class: str = "Slab"
    reclaimable: bool = False
    step_bytes: int = 0
    """Of one step. 0: the size of one object of the cache."""
    blocks_of_step: int = 1

    def __str__(self) -> str:
        return f"{self.load} {self.function}"


def cpus() -> int:
    """The CPUs for which per-CPU memory is allocated."""
    first, _, last = Path("/sys/devices/system/cpu/possible").read_text().strip().partition("-")
    return int(last or first) - int(first) + 1


KMALLOC_64 = r"kmalloc(-rnd-\d\d)?-64"
MESSAGE = r"(msg_msg|kmalloc-cg|kmalloc)"  # since Linux 6.11, since 5.14, and before
PLANTED = {
    "messages_64": [Planted("messages_64", 4_800, f"{MESSAGE}-64", "load_msg")],
    "messages_512": [Planted("messages_512", 600, f"{MESSAGE}-512", "load_msg")],
    "eventfds": [
        Planted("eventfds", 5_000, KMALLOC_64, "do_eventfd"),
        Planted("eventfds", 5_000, "filp", "alloc_empty_file"),
        Planted("eventfds", 5_000, "dentry", "__d_alloc|d_alloc_pseudo", reclaimable=True),
    ],
    "files": [
        Planted("files", 5_000, "dentry", "__d_alloc|d_alloc", reclaimable=True),
        Planted("files", 5_000, "shmem_inode_cache", "shmem_alloc_inode"),
    ],
    "arrays": [Planted("arrays", 10, "", "array_map_alloc", "Vmalloc", step_bytes=ARRAY_BYTES)],
    "percpu": [
        Planted(
            "percpu",
            10,
            "",
            "htab_map_alloc",
            "Percpu",
            step_bytes=PERCPU_VALUES * PERCPU_VALUE_BYTES * cpus(),
            blocks_of_step=PERCPU_VALUES,
        )
    ],
}


@dataclass(frozen=True)
class Seen:
    """A load, what it counted, and the document of a run beside it."""

    evidence: Evidence
    pid: int
    comm: str
    counted: Counted


def diagnose(seconds: int) -> Evidence:
    """The document of `memdiag-node` with its usual settings."""
    command = [sys.executable, "-m", "memdiag_node.cli", "--quiet", "--output", "json", "--duration", f"{seconds}s"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return Evidence.model_validate_json(done.stdout)


def seen_beside(load: SteadyLoad, seconds: int) -> Seen:
    evidence = diagnose(seconds)
    return Seen(evidence, load.pid, load.comm, load.count())


@pytest.fixture(scope="module", params=list(PLANTED))
def seen(request: pytest.FixtureRequest) -> Seen:
    (per_second,) = {one.per_second for one in PLANTED[request.param]}
    with steady(request.param, per_second) as load:
        return seen_beside(load, WINDOW_SECONDS)


def object_bytes(cache: str) -> int:
    """The size of the objects of a cache (man 5 slabinfo)."""
    (size,) = {
        int(row[3]) for row in map(str.split, Path("/proc/slabinfo").read_text().splitlines()) if row[0] == cache
    }
    return size


def stacks_of(seen: Seen, planted: Planted) -> list[Stack]:
    """The stacks of objects with the planted cache, function and process. Fails if there are none."""
    named = re.compile(rf"({planted.function})\+")
    found = [
        stack
        for stack in seen.evidence.stacks
        if stack.unit is AllocationUnit.OBJECTS
        and stack.memory_class == planted.memory_class
        and re.fullmatch(planted.cache, stack.slab_cache)
        and any(map(named.match, stack.frames))
        and any(one.pid == seen.pid for one in stack.processes)
    ]
    assert found, "\n".join(map(in_words, seen.evidence.stacks))
    return found


def in_words(stack: Stack) -> str:
    """For the message of a failure."""
    processes = " ".join(f"{one.comm}[{one.pid}]" for one in stack.processes[:3])
    return (
        f"{stack.unit} {stack.memory_class} {stack.slab_cache} {stack.outstanding_bytes} in {stack.outstanding_blocks} "
        f"+-{stack.error_bytes}, {stack.growth_bytes_per_second:.0f} +-{stack.growth_error_bytes_per_second:.0f}/s "
        f"{stack.trend} share {stack.sampled_share:.4f}: {processes}: {' '.join(stack.frames[:6])}"
    )


def agrees(found: float, planted: float, error: float) -> bool:
    """Whether a figure is right: within the tolerance, or within four of its stated standard errors."""
    return abs(found - planted) <= max(TOLERANCE * planted, ERRORS * error)


def assert_right(seen: Seen, planted: Planted) -> None:
    """The bytes, the number of objects and the growth, of the stacks of one planted load."""
    stacks = stacks_of(seen, planted)
    step_bytes = planted.step_bytes or object_bytes(stacks[0].slab_cache)
    steps = seen.counted.per_second * seen.evidence.window.requested_seconds
    error = math.hypot(*(one.error_bytes for one in stacks))
    growth_error = math.hypot(*(one.growth_error_bytes_per_second for one in stacks))
    said = "\n".join(map(in_words, stacks)) + f"\nplanted {steps:.0f} of {step_bytes} bytes"
    mine = sum(one.outstanding_bytes for stack in stacks for one in stack.processes if one.pid == seen.pid)
    assert agrees(mine, steps * step_bytes, error), said
    blocks = sum(stack.outstanding_blocks for stack in stacks)
    assert agrees(blocks, steps * planted.blocks_of_step, error / step_bytes * planted.blocks_of_step), said
    growth = sum(stack.growth_bytes_per_second for stack in stacks)
    assert agrees(growth, seen.counted.per_second * step_bytes, growth_error), said


def planted_in(seen: Seen, request: pytest.FixtureRequest) -> Sequence[Planted]:
    found: Sequence[Planted] = PLANTED[request.node.callspec.params["seen"]]
    return found


def test_cache_function_and_process_are_the_planted_ones(seen: Seen, request: pytest.FixtureRequest) -> None:
    for planted in planted_in(seen, request):
        for stack in stacks_of(seen, planted):
            assert stack.context is Context.PROCESS
            assert {one.comm for one in stack.processes if one.pid == seen.pid} == {seen.comm}
            assert stack.reclaimable is planted.reclaimable
            assert stack.outstanding_by_order == {}


def test_objects_bytes_and_growth_are_the_planted_ones(seen: Seen, request: pytest.FixtureRequest) -> None:
    for planted in planted_in(seen, request):
        assert_right(seen, planted)


def test_nothing_was_lost(seen: Seen) -> None:
    assert seen.evidence.trace is not None
    assert seen.evidence.trace.counters.lost_objects == 0
    assert set(seen.evidence.trace.object_classes) == {"Slab", "Vmalloc", "Percpu"}


def test_a_small_leak_is_found_beside_a_storm() -> None:
    planted = Planted("messages_512", round(LEAK_BYTES_PER_MINUTE / 60 / 512), f"{MESSAGE}-512", "load_msg")
    with steady("datagrams", STORM_DATAGRAMS) as storm, steady(planted.load, planted.per_second) as leak:
        seen = seen_beside(leak, LONGER_WINDOW_SECONDS)
        made = storm.count()
    assert made.per_second >= LEAST_STORM_OBJECTS, "the machine is too busy for the storm"
    assert_right(seen, planted)


@pytest.mark.parametrize("run", range(CHURN_RUNS))
@pytest.mark.parametrize("name", CHURN_CASES)
def test_churn_is_not_a_leak_of_slab(name: str, run: int) -> None:
    try:
        with plant(name):
            evidence = diagnose(WINDOW_SECONDS)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert slab_growth(evidence.model_dump(mode="json", by_alias=True)) == [], f"run {run}"
