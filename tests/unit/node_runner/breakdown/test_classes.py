"""The arithmetic of the breakdown, on readings of real kernels and on modified ones."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.memory_classes import ClassName
from memdiag_node.breakdown.classes import alloc_page_bytes, breakdown, class_sizes
from memdiag_node.breakdown.reading import MemoryReading, take_reading
from memdiag_node.breakdown.surroundings import Surroundings, read_surroundings
from memdiag_node.procfs.meminfo import MemInfo
from memdiag_node.procfs.vmstat import VmStat
from support.fixtures import RECORDED, RECORDED_IDS, roots_of

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB

READING = MemoryReading(
    meminfo=MemInfo(
        mem_total_bytes=8 * GIB,
        mem_free_bytes=2 * GIB,
        lru_bytes=3 * GIB,
        anon_bytes=1 * GIB,
        shmem_bytes=512 * MIB,
        hugetlb_bytes=256 * MIB,
        slab_reclaimable_bytes=200 * MIB,
        slab_unreclaimable_bytes=100 * MIB,
        kernel_stack_bytes=10 * MIB,
        page_table_bytes=20 * MIB,
        secondary_page_table_bytes=5 * MIB,
        vmalloc_bytes=60 * MIB,
        percpu_bytes=8 * MIB,
        balloon_bytes=0,
    ),
    vmstat=VmStat(
        isolated_pages=256, zsmalloc_pages=512, memmap_pages=1024, balloon_pages=2048, huge_zero_pages_made=1
    ),
    per_cpu_list_bytes=300 * MIB,
    vmalloc_bytes=60 * MIB,
    surroundings=Surroundings(
        page_size_bytes=PAGE,
        huge_page_bytes=2 * MIB,
        first_chunk_bytes=3 * MIB,
        first_chunk_error_bytes=0,
        stacks_in_vmalloc=True,
        balloon_in_total=False,
    ),
)


def test_every_use_is_subtracted_once() -> None:
    """Expected: 3 GiB + 1 MiB isolated on the LRU, 500 MiB of it not anon and not shmem, and so on."""
    sizes = class_sizes(READING)
    assert sizes == {
        "AnonPages": 1 * GIB,
        "Shmem": 512 * MIB,
        "FileCache": (3072 + 1 - 1024 - 512) * MIB,
        "Hugetlb": 256 * MIB,
        "HugeZeroPage": 2 * MIB,
        "SReclaimable": 200 * MIB,
        "SUnreclaim": 100 * MIB,
        "KernelStack": 10 * MIB,
        "Vmalloc": 50 * MIB,
        "PageTables": 20 * MIB,
        "SecPageTables": 5 * MIB,
        "Percpu": 5 * MIB,
        "Zsmalloc": 2 * MIB,
        "Memmap": 4 * MIB,
        "Balloon": 0,
        "MemFree": 2 * GIB,
        "PerCpuLists": 300 * MIB,
        "AllocPage": (8192 - 3073 - 256 - 2 - 300 - 60 - 20 - 5 - 5 - 2 - 4 - 2048 - 300) * MIB,
    }


def test_stacks_outside_of_vmalloc_are_subtracted_separately() -> None:
    elsewhere = replace(READING, surroundings=replace(READING.surroundings, stacks_in_vmalloc=False))
    assert class_sizes(elsewhere)[ClassName.VMALLOC] == 60 * MIB
    assert alloc_page_bytes(READING) - alloc_page_bytes(elsewhere) == 10 * MIB


@pytest.mark.parametrize(("in_meminfo", "expected_bytes"), [(7 * MIB, 7 * MIB), (None, 2048 * PAGE)])
def test_a_balloon_inside_the_total_is_a_separate_class(in_meminfo: int | None, expected_bytes: int) -> None:
    ballooned = replace(
        READING,
        meminfo=replace(READING.meminfo, balloon_bytes=in_meminfo),
        surroundings=replace(READING.surroundings, balloon_in_total=True),
    )
    assert class_sizes(ballooned)[ClassName.BALLOON] == expected_bytes
    assert alloc_page_bytes(READING) - alloc_page_bytes(ballooned) == expected_bytes


def with_free_bytes(mem_free_bytes: int) -> MemoryReading:
    return replace(READING, meminfo=replace(READING.meminfo, mem_free_bytes=mem_free_bytes))


def test_pages_counted_twice_are_taken_from_the_free_lists() -> None:
    torn = with_free_bytes(2 * GIB + alloc_page_bytes(READING) + 40 * MIB)
    assert alloc_page_bytes(torn) == -40 * MIB
    sizes = class_sizes(torn)
    assert (sizes[ClassName.ALLOC_PAGE], sizes[ClassName.PER_CPU_LISTS]) == (0, 260 * MIB)
    assert sum(sizes.values()) == 8 * GIB


def test_the_median_reading_is_shown_and_an_outlier_does_not_count() -> None:
    steady = [with_free_bytes(2 * GIB + wobble * MIB) for wobble in (0, 1, 2, 3, 4, 5, 6, 7)]
    found = breakdown([*steady, with_free_bytes(1 * GIB)])
    assert found.alloc_page_bytes == alloc_page_bytes(READING) - 3 * MIB
    assert found.alloc_page_error_bytes == 2 * MIB
    assert sum(line.size_bytes for line in found.classes) == found.mem_total_bytes == 8 * GIB


def test_an_estimated_first_chunk_adds_to_the_error() -> None:
    unsure = replace(READING, surroundings=replace(READING.surroundings, first_chunk_error_bytes=96 * KIB))
    assert breakdown([unsure]).alloc_page_error_bytes == 96 * KIB


def test_the_change_is_from_the_earlier_median() -> None:
    earlier = [with_free_bytes(2 * GIB + 64 * MIB)] * 3
    assert breakdown([READING]).alloc_page_change_bytes == 0
    assert breakdown([READING], earlier=earlier).alloc_page_change_bytes == 64 * MIB
    assert breakdown(earlier, earlier=[READING]).alloc_page_change_bytes == -64 * MIB


def test_classes_are_sorted_by_group_and_size_without_empty_ones() -> None:
    found = breakdown([READING])
    groups = [line.group for line in found.classes]
    assert groups == sorted(groups, key=["Application", "Kernel", "Free"].index)
    assert [line.name for line in found.classes if line.group == "Application"][:2] == ["FileCache", "AnonPages"]
    assert "Balloon" not in {line.name for line in found.classes}


def test_an_empty_list_of_readings_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one reading"):
        breakdown([])


@pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)
def test_a_recorded_idle_machine_has_hardly_any_allocpage(machine: Path) -> None:
    """None of the machines had a load when it was recorded: less than 20 MiB, and not negative."""
    roots = roots_of(machine)
    surroundings = read_surroundings(roots, kernel_log=(machine / "kernel_log").read_bytes())
    reading = take_reading(roots, surroundings)
    assert 0 <= alloc_page_bytes(reading) < 20 * MIB
    assert sum(class_sizes(reading).values()) == reading.meminfo.mem_total_bytes


sizes_bytes = st.integers(0, 1 << 42)


@given(
    meminfo=st.builds(MemInfo, *[sizes_bytes] * 13, balloon_bytes=st.none() | sizes_bytes),
    vmstat=st.builds(VmStat, *[st.integers(0, 1 << 30)] * 5),
    per_cpu_list_bytes=sizes_bytes,
    vmalloc_bytes=sizes_bytes,
    surroundings=st.builds(Surroundings, st.just(PAGE), st.just(2 * MIB), sizes_bytes, st.just(0)),
)
def test_classes_always_add_up_and_none_is_negative(
    meminfo: MemInfo, vmstat: VmStat, per_cpu_list_bytes: int, vmalloc_bytes: int, surroundings: Surroundings
) -> None:
    sizes = class_sizes(MemoryReading(meminfo, vmstat, per_cpu_list_bytes, vmalloc_bytes, surroundings))
    assert sum(sizes.values()) == meminfo.mem_total_bytes
    assert min(sizes.values()) >= 0
