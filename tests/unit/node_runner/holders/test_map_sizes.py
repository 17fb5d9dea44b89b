"""Sizes of BPF maps: figures that Linux 6.18 itself reported (fdinfo, memlock) for maps of 10,000 entries on 2 CPUs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.memory_classes import ClassName
from memdiag_node.holders.map_sizes import MapFields, MapType, map_memory

ENTRIES, CPUS = 10_000, 2
U32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("fields", "memlock_bytes", "memory_class"),
    [
        (MapFields(MapType.HASH, 4, 100, ENTRIES, 0, element_bytes=160, buckets=16384), 1863376, ClassName.VMALLOC),
        (MapFields(MapType.ARRAY, 4, 100, ENTRIES, 0, element_bytes=104), 1040312, ClassName.VMALLOC),
        (MapFields(MapType.PROG_ARRAY, 4, 4, ENTRIES, 0, element_bytes=8), 80312, ClassName.VMALLOC),
        (MapFields(MapType.PERCPU_HASH, 4, 100, ENTRIES, 0, 64, 16384), 2983040, ClassName.PERCPU),
        (MapFields(MapType.PERCPU_ARRAY, 4, 100, ENTRIES, 0, 104), 2160312, ClassName.PERCPU),
        (MapFields(MapType.STACK_TRACE, 4, 8, ENTRIES, 0), 371392, ClassName.VMALLOC),
        (MapFields(MapType.LRU_HASH, 4, 100, ENTRIES, 0, 160, 16384), 1863040, ClassName.VMALLOC),
        (MapFields(MapType.SOCKHASH, 4, 4, ENTRIES, 0), 262528, ClassName.VMALLOC),
        (MapFields(MapType.QUEUE, 0, 100, ENTRIES, 0), 1000412, ClassName.VMALLOC),
        (MapFields(MapType.DEVMAP_HASH, 4, 4, ENTRIES, 0), 131416, ClassName.VMALLOC),
    ],
)
def test_within_a_structure_of_what_the_kernel_reports(
    fields: MapFields, memlock_bytes: int, memory_class: ClassName
) -> None:
    found = map_memory(fields, cpus=CPUS)
    assert found is not None
    assert found[1] is memory_class
    assert 0 <= memlock_bytes - found[0] < 1024


def test_a_table_that_allocates_each_entry_counts_those_in_use() -> None:
    fields = MapFields(MapType.HASH, 4, 100, 1_000_000, 1, element_bytes=160, buckets=16, entries=5_000)
    assert map_memory(fields, cpus=CPUS) == (5_000 * 168 + 256, ClassName.SUNRECLAIM)


def test_a_small_array_is_slab_unless_it_can_be_mapped() -> None:
    assert map_memory(MapFields(MapType.ARRAY, 4, 8, 10, 0), cpus=CPUS) == (80, ClassName.SUNRECLAIM)
    assert map_memory(MapFields(MapType.ARRAY, 4, 8, 10, 1 << 10), cpus=CPUS) == (4096, ClassName.VMALLOC)


def test_an_unknown_type_has_no_size() -> None:
    assert map_memory(MapFields(999, 4, 4, 10, 0), cpus=CPUS) is None


@given(st.builds(MapFields, *([U32] * 5), element_bytes=U32, buckets=U32, entries=U32), st.integers(1, 8192))
def test_numbers_of_any_kind_have_a_size_or_none(fields: MapFields, cpus: int) -> None:
    found = map_memory(fields, cpus=cpus)
    assert found is None or found[0] >= 0
