"""object_trace.bpf.c, event by event: its programs run in the kernel on simulated allocations and frees.

They are attached to nothing, so no other event touches their tables.
"""

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.slab.cache import Cache
from memdiag_node.trace.births import median_life_seconds
from memdiag_node.trace.identity import identity_layout
from memdiag_node.trace.objects import eviction, object_trace, tables
from memdiag_node.trace.objects.decode import decode_objects
from memdiag_node.trace.objects.sampling import alignment_bytes, filter_words, large_caches
from memdiag_node.trace.objects.tables import DENSEST_BYTES, SPARSEST_BYTES, Kind
from support.bpf import run_raw_tracepoint, set_on_every_cpu
from support.raw_objects import LINEAR_MAP, located, raw_objects, slab_cache

OBJECTS = 1 << 13
SITE, OTHER_SITE = 0xFFFFFFFF81234567, 0xFFFFFFFF817654AB
CACHE, UNKNOWN_CACHE = 0xFFFF888100042E00, 0xFFFF888100047000
PAGE_BYTES = 4096
PROGRAMS = (
    *("on_kmalloc", "on_cache_alloc", "on_kfree", "on_cache_free"),
    *("on_percpu_alloc", "on_percpu_alloc_without_call_site", "on_percpu_free"),
    *("on_vmap_area", "on_vmap_area_freed"),
)

Addresses = npt.NDArray[np.uint64]


def page(number: int) -> int:
    """The address of a page: an object there is always picked."""
    return LINEAR_MAP + PAGE_BYTES * number


class Machine:
    """The programs and their tables."""

    def __init__(self, bpf: BpfObject) -> None:
        self.bpf = bpf
        self.config = bpf.view("config", tables.CONFIG_DTYPE, 1)
        self._programs = {name: bpf.load_raw_tracepoint(name) for name in PROGRAMS}

    def clear(self) -> None:
        self.config["budget_permille"] = 0
        self.config["filter"] = 0
        for name in ("large_caches", "objects", "totals", "processes", "stacks", "cgroups", "lives"):
            self.bpf.delete_keys(name, self.bpf.read_map(name, tables.MAPS[name])["key"])
        set_on_every_cpu(self.bpf, "cpu", np.zeros(1, tables.CPU_DTYPE))
        self.set_interrupted(0)

    def set_interrupted(self, levels: int) -> None:
        """Put the tables into the state in which programs in this many levels are interrupted, on every CPU."""
        for level in range(4):
            set_on_every_cpu(self.bpf, "scratch", np.array([(int(level < levels),)], tables.SCRATCH_DTYPE), level)

    def run(self, program: str, *arguments: int) -> None:
        run_raw_tracepoint(self._programs[program], *arguments)

    def know(self, *caches: Cache) -> None:
        """Fill the tables of caches with large objects, as a trace does when it starts."""
        large = large_caches(caches)
        self.bpf.update("large_caches", large["key"], large["value"])
        self.config["filter"] = filter_words(large["key"])

    def alloc(self, address: int, site: int = SITE, *, program: str = "on_kmalloc") -> None:
        self.run(program, site, address, 64, 64, 0xCC0)

    def free(self, address: int, *, program: str = "on_kfree") -> None:
        self.run(program, SITE, address, UNKNOWN_CACHE)

    def entries(self) -> npt.NDArray[np.void]:
        return self.bpf.read_map("objects", tables.OBJECT_ENTRY_DTYPE)

    def recorded(self) -> set[int]:
        return set(self.entries()["key"].tolist())

    def totals(self) -> npt.NDArray[np.void]:
        return self.bpf.read_map("totals", tables.TOTALS_ENTRY_DTYPE)["value"]

    def counter(self, name: str) -> int:
        return int(self.bpf.read_per_cpu("cpu", tables.CPU_DTYPE)[name].sum())


@pytest.fixture(scope="module")
def loaded() -> Iterator[Machine]:
    defines = {**identity_layout(Btf.load()), **tables.NUMBERS_IN_C, "OBJECTS": OBJECTS}
    with BpfObject(object_trace._SOURCE, defines, tables.MAPS) as bpf:
        yield Machine(bpf)


@pytest.fixture
def machine(loaded: Machine) -> Machine:
    loaded.clear()
    return loaded


def aligned_addresses(alignment: int, count: int) -> Addresses:
    """Different random addresses that are aligned to just so many bytes."""
    random = np.random.default_rng(alignment)
    multiples = np.unique(random.integers(0, 1 << 32, count, np.uint64) * np.uint64(2) + np.uint64(1))
    return np.uint64(LINEAR_MAP) + multiples * np.uint64(alignment)


@pytest.mark.parametrize("alignment", [8, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
def test_addresses_are_picked_with_the_probability_of_their_alignment(machine: Machine, alignment: int) -> None:
    addresses = aligned_addresses(alignment, 3000)
    for address in addresses.tolist():
        machine.alloc(address)
    picked = machine.recorded()
    probability = min(max(alignment, SPARSEST_BYTES), DENSEST_BYTES) / DENSEST_BYTES
    deviation = (len(addresses) * probability * (1 - probability)) ** 0.5
    assert (alignment_bytes(addresses) == round(probability * DENSEST_BYTES)).all()
    assert abs(len(picked) - len(addresses) * probability) <= 4 * deviation
    assert machine.counter("recorded") == machine.counter("added") == len(picked)
    for address in addresses.tolist():
        machine.free(address)
    assert machine.recorded() == set()
    assert machine.counter("removed") == len(picked)


@pytest.mark.parametrize(
    ("stride_bytes", "probability"), [(960, 1 / 16), (1088, 1 / 4), (2432, 1 / 2), (9984, 1), (4160, 1)]
)
def test_large_objects_of_known_caches_are_picked_by_their_size(
    machine: Machine, stride_bytes: int, probability: float
) -> None:
    """Wherever they are. An object of another cache, and one by kmalloc, is picked by its address alone."""
    machine.know(slab_cache("known", stride_bytes, address=CACHE), slab_cache("other", 2048, address=CACHE + 512))
    addresses = aligned_addresses(64, 2000).tolist()
    for address in addresses:
        machine.run("on_cache_alloc", SITE, address, CACHE, 0xCC0, 0)
    picked, entries = machine.recorded(), machine.entries()
    deviation = (len(addresses) * probability * (1 - probability)) ** 0.5
    assert abs(len(picked) - len(addresses) * probability) <= 4 * deviation
    assert set(entries["value"]["one_in"].tolist()) == {round(1 / probability)}
    assert machine.totals()["allocated"].sum() == len(picked) / probability
    for address in addresses:
        machine.run("on_cache_free", SITE, address, CACHE)
    assert machine.recorded() == set()
    for address in addresses:
        machine.run("on_cache_alloc", SITE, address, UNKNOWN_CACHE, 0xCC0, 0)
        machine.alloc(address + 8)
    assert set(machine.entries()["value"]["one_in"].tolist()) == {16}


@pytest.mark.parametrize("stride_bytes", [8, 32, 64, 96, 192, 256, 512, 1024, 2048, 4096])
def test_objects_side_by_side_are_picked_like_random_ones(machine: Machine, stride_bytes: int) -> None:
    """The slabs of a cache follow each other. Of the objects picked, an eviction has to keep half as well."""
    slab = np.arange(0, 8 * PAGE_BYTES - stride_bytes + 1, stride_bytes)
    count = 8000 // len(slab) or 1
    addresses = (page(0) + 8 * PAGE_BYTES * np.arange(count, dtype=np.uint64)[:, None] + slab.astype("<u8")).ravel()
    for address in addresses.tolist():
        machine.alloc(address)
    picked = machine.entries()["key"]
    weight = DENSEST_BYTES / alignment_bytes(picked)
    is_kept = eviction._hashes(picked) < 1 << (eviction._HASH_BITS - 1)
    deviation = float(np.sum(weight * (weight - 1))) ** 0.5
    assert abs(float(weight.sum()) - len(addresses)) <= 4 * deviation
    assert abs(float(is_kept.mean()) - 0.5) <= 2 / len(picked) ** 0.5


@pytest.mark.parametrize(("allocates", "frees"), [("on_kmalloc", "on_kfree"), ("on_cache_alloc", "on_cache_free")])
def test_an_object_is_out_until_it_is_freed(machine: Machine, allocates: str, frees: str) -> None:
    machine.alloc(page(1), program=allocates)
    machine.alloc(page(2), program=allocates)
    (first, second) = machine.entries()
    assert {int(first["key"]), int(second["key"])} == {page(1), page(2)}
    assert first["value"]["stack"] == second["value"]["stack"] != 0
    assert (first["value"]["level"], first["value"]["size_bytes"]) == (0, 0)
    machine.free(page(1), program=frees)
    assert machine.recorded() == {page(2)}
    machine.free(page(2), program=frees)
    assert machine.recorded() == set()


def test_null_and_frees_of_what_was_never_seen_change_nothing(machine: Machine) -> None:
    machine.alloc(0)
    machine.free(0)
    machine.free(page(5))
    assert machine.recorded() == set()
    assert (machine.counter("picked"), machine.counter("removed"), machine.counter("lost_objects")) == (0, 0, 0)


def test_a_missed_free_is_corrected_by_the_next_allocation(machine: Machine) -> None:
    machine.alloc(page(1))
    (before,) = machine.entries()
    machine.alloc(page(1), OTHER_SITE)
    (after,) = machine.entries()
    assert after["value"]["born_ns"] > before["value"]["born_ns"]
    assert (machine.counter("recorded"), machine.counter("added"), machine.counter("removed")) == (2, 1, 0)


def make_thinned(machine: Machine, site: int) -> None:
    """Let the governor thin out the allocations of a call site."""
    machine.config["budget_permille"] = 1
    for number in range(4096):
        machine.alloc(page(number % 512), site)
    assert machine.counter("thinned") > 0


def test_a_missed_free_is_corrected_by_a_thinned_allocation_and_ends_no_life(machine: Machine) -> None:
    make_thinned(machine, OTHER_SITE)
    thinned = machine.counter("thinned")
    for number in range(1000, 3000):
        machine.config["budget_permille"] = 0
        machine.alloc(page(number))
        machine.config["budget_permille"] = 1
        before = lives(machine)
        machine.alloc(page(number), OTHER_SITE)
        if machine.counter("thinned") > thinned:
            break
    assert machine.counter("thinned") == thinned + 1
    assert page(number) not in machine.recorded()
    assert lives(machine) == before
    assert machine.counter("added") - machine.counter("removed") == len(machine.recorded())


def test_beyond_the_last_level_an_object_is_lost_and_replaces_one_whose_free_was_missed(machine: Machine) -> None:
    machine.alloc(page(1))
    machine.set_interrupted(4)
    machine.alloc(page(1))
    machine.alloc(page(2))
    assert machine.recorded() == set()
    assert (machine.counter("interrupted"), machine.counter("lost_objects"), machine.counter("removed")) == (2, 2, 1)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_what_interrupts_another_program_is_recorded_with_its_stack(machine: Machine, levels: int) -> None:
    machine.set_interrupted(levels)
    machine.alloc(page(1))
    (entry,) = machine.entries()
    assert entry["value"]["stack"] != 0
    assert (machine.counter("nested"), machine.counter("lost_objects")) == (1, 0)


PER_CPU = 0x2A5F4  # the kernel aligns to 4 bytes


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("on_percpu_alloc", (SITE, 0, 0, 24, 8, 0xFF, 0x5F4, PER_CPU, 24, 0xCC0)),
        ("on_percpu_alloc_without_call_site", (0, 0, 24, 8, 0xFF, 0x5F4, PER_CPU)),
    ],
)
def test_per_cpu_memory_is_recorded_with_its_size(machine: Machine, program: str, arguments: tuple[int, ...]) -> None:
    machine.run(program, *arguments)
    (entry,) = machine.entries()
    (totals,) = machine.totals()
    assert int(entry["key"]) == PER_CPU | Kind.PERCPU
    assert int(entry["value"]["size_bytes"]) == 24
    assert totals.tolist() == (1, 1, 24)
    machine.run("on_percpu_free", 0xFF, 0x5F4, PER_CPU)
    assert machine.recorded() == set()


AREA = 0xFFFFC90000400000


@pytest.mark.parametrize(
    ("asked_bytes", "found_bytes"),
    [(5 * PAGE_BYTES, 4 * PAGE_BYTES), (2 * PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES, PAGE_BYTES)],
)
def test_an_area_is_recorded_without_its_guard_page(machine: Machine, asked_bytes: int, found_bytes: int) -> None:
    machine.run("on_vmap_area", AREA, asked_bytes, 1, AREA, AREA + (1 << 30), 0)
    (entry,) = machine.entries()
    assert int(entry["key"]) == AREA | Kind.VMALLOC
    assert int(entry["value"]["size_bytes"]) == found_bytes
    assert machine.totals()[0].tolist() == (1, 1, found_bytes)
    machine.run("on_vmap_area_freed", AREA, 1, 64)
    assert machine.recorded() == set()


def test_an_area_that_was_not_found_is_ignored(machine: Machine) -> None:
    """Only the lower half of the argument is meaningful: it is an int."""
    machine.run("on_vmap_area", AREA, 5 * PAGE_BYTES, 1, AREA, AREA + (1 << 30), 1)
    assert machine.recorded() == set()
    machine.run("on_vmap_area", AREA, 5 * PAGE_BYTES, 1, AREA, AREA + (1 << 30), 0xDEAD << 32)
    assert machine.recorded() == {AREA | Kind.VMALLOC}


def test_kinds_at_the_same_address_are_apart(machine: Machine) -> None:
    machine.alloc(AREA)
    machine.run("on_percpu_alloc", SITE, 0, 0, 24, 8, 0xFF, 0, AREA, 24, 0)
    machine.run("on_vmap_area", AREA, 5 * PAGE_BYTES, 1, 0, 0, 0)
    machine.run("on_vmap_area_freed", AREA, 1, 64)
    assert machine.recorded() == {AREA | Kind.SLAB, AREA | Kind.PERCPU}
    machine.free(AREA)
    assert machine.recorded() == {AREA | Kind.PERCPU}


def test_totals_count_what_each_recorded_object_represents(machine: Machine) -> None:
    sparse = aligned_addresses(512, 400).tolist()
    for address in (*sparse, page(1), page(2)):
        machine.alloc(address)
        machine.free(address)
    (totals,) = machine.totals()
    recorded = machine.counter("recorded")
    assert 2 < recorded < len(sparse)
    assert totals.tolist() == (recorded, 8 * (recorded - 2) + 2, 0)


def lives(machine: Machine) -> dict[int, int]:
    """The number of lives by bucket."""
    found = machine.bpf.read_map("lives", tables.MAPS["lives"])
    return dict(zip(found["key"]["bucket"].tolist(), found["value"].tolist(), strict=True))


def test_a_life_is_counted_when_its_object_is_freed(machine: Machine) -> None:
    for number in range(3):
        machine.alloc(page(number))
    entries = machine.entries()
    entries["value"]["born_ns"] = time.monotonic_ns() - 1000 * 10**9
    machine.bpf.update("objects", entries["key"], entries["value"])
    machine.free(page(0))
    machine.free(page(1))
    found = machine.bpf.read_map("lives", tables.MAPS["lives"])
    assert found["key"]["stack"].tolist() == [int(entries["value"]["stack"][0])]
    assert sum(lives(machine).values()) == 2
    assert median_life_seconds(lives(machine)) == pytest.approx(1000, rel=0.1)


def test_a_full_table_is_counted_and_has_room_again_after_a_free(machine: Machine) -> None:
    for number in range(OBJECTS + 10):
        machine.alloc(page(number))
    assert (machine.counter("lost_objects"), machine.counter("added")) == (10, OBJECTS)
    machine.alloc(page(5))  # what is there is replaced
    assert machine.counter("lost_objects") == 10
    machine.free(page(5))
    machine.alloc(page(OBJECTS))
    assert machine.counter("lost_objects") == 10
    assert machine.counter("added") - machine.counter("removed") == len(machine.recorded()) == OBJECTS


def test_without_room_for_a_stack_its_objects_are_recorded(machine: Machine) -> None:
    names = np.zeros(tables.STACKS, tables.MAPS["stacks"])
    names["key"] = np.arange(1, len(names) + 1)
    machine.bpf.update("stacks", names["key"], names["value"])
    machine.alloc(page(1))
    assert machine.entries()["value"]["stack"].tolist() == [0]
    assert machine.counter("lost_stacks") == 1


def test_the_process_is_named_until_its_stack_is_known_to_run_in_an_interrupt(machine: Machine) -> None:
    machine.alloc(page(1))
    (first,) = machine.entries()
    processes = machine.bpf.read_map("processes", tables.PROCESS_ENTRY_DTYPE)
    assert processes["key"].tolist() == [int(first["value"]["tgid"])] != [0]
    stacks = machine.bpf.read_map("stacks", tables.MAPS["stacks"])
    stacks["value"]["context"] = tables.NUMBERS_IN_C["CONTEXT_SOFTIRQ"]
    machine.bpf.update("stacks", stacks["key"], stacks["value"])
    machine.alloc(page(1))
    (second,) = machine.entries()
    assert second["value"]["stack"] == first["value"]["stack"]
    assert second["value"]["tgid"] == 0


def test_a_rare_call_site_stays_whole_under_a_storm_of_another(machine: Machine) -> None:
    make_thinned(machine, OTHER_SITE)
    rare = [page(10_000 + number) for number in range(20)]
    for address in rare:
        for number in range(512):
            machine.alloc(page(number), OTHER_SITE)
        machine.alloc(address)
    entries = machine.entries()
    found = entries[np.isin(entries["key"], np.array(rare, "<u8"))]
    assert len(found) == len(rare)
    assert set(found["value"]["level"].tolist()) == {0}


def test_thinned_figures_are_within_their_stated_uncertainty(machine: Machine) -> None:
    """800 loads at random addresses: nearly always within two standard errors of the truth, and right on average.

    A load is so large that one in 32 of it, which is more than the budget thins it out, is still enough for its error
    to be a normal one.
    """
    repetitions, stride_bytes, count = 800, 1024, 2400
    random = np.random.default_rng(1)
    cache = slab_cache("kmalloc-1k", stride_bytes)
    within_two, within_three, deviations = 0, 0, []
    machine.config["budget_permille"] = 30
    for _ in range(repetitions):
        slots = random.permutation(np.unique(random.integers(0, 1 << 32, count, np.uint64)))
        addresses = np.uint64(LINEAR_MAP) + slots * np.uint64(stride_bytes)
        for address in addresses.tolist():
            machine.alloc(address)
        entries = machine.entries()
        machine.bpf.delete_keys("objects", entries["key"])
        raw = raw_objects(entries, started_ns=0)
        stacks = decode_objects(raw, located(raw, [cache]), possible_cpus=2).stacks
        estimated, error = (stacks[0].outstanding_bytes, stacks[0].error_bytes) if stacks else (0, 0)
        truth = len(addresses) * stride_bytes
        within_two += abs(estimated - truth) <= 2 * error
        within_three += abs(estimated - truth) <= 3 * error
        deviations.append((estimated - truth) / truth)
    assert machine.counter("thinned") > 0
    assert within_two >= 0.90 * repetitions
    assert within_three >= 0.95 * repetitions
    assert abs(float(np.mean(deviations))) < 0.1
