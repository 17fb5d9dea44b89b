"""Which stacks count if objects were traced besides pages, by table."""

import pytest

from memdiag_api.evidence import AllocationUnit, Context, Stack
from memdiag_node.counted_stacks import counted_stacks

PAGES, OBJECTS = AllocationUnit.PAGES, AllocationUnit.OBJECTS
ALL_CLASSES = ("Slab", "Vmalloc", "Percpu")


def stack(memory_class: str, unit: AllocationUnit = PAGES, slab_cache: str = "") -> Stack:
    return Stack(
        frames=["driver_alloc+0x10"],
        context=Context.PROCESS,
        memory_class=memory_class,
        unit=unit,
        slab_cache=slab_cache,
        outstanding_bytes=4096,
        outstanding_blocks=1,
    )


LARGE = stack("Slab").model_copy(update={"outstanding_by_order": {"2": 1, "4": 9}})
UNKNOWN_CACHE = stack("Slab").model_copy(update={"outstanding_by_order": {"0": 1, "2": 9}})


@pytest.mark.parametrize(
    ("stacks", "object_classes", "counted"),
    [
        pytest.param([stack("AllocPage"), stack("PageTables")], ALL_CLASSES, [0, 1], id="classes of pages"),
        pytest.param([stack("Slab", PAGES, "kmalloc-64")], (), [0], id="only pages were traced"),
        pytest.param(
            [stack("Slab", PAGES, "kmalloc-64"), stack("Slab", OBJECTS, "kmalloc-64")], ("Slab",), [1], id="slab"
        ),
        pytest.param([stack("Vmalloc"), stack("Percpu")], ("Slab", "Vmalloc"), [1], id="one class of two"),
        pytest.param([stack("KernelStack")], ("Vmalloc",), [], id="stacks of threads are areas of vmalloc"),
        pytest.param([LARGE, UNKNOWN_CACHE], ("Slab",), [0], id="large kmalloc is in no slab"),
        pytest.param([LARGE, stack("Slab", OBJECTS)], ("Slab",), [1], id="large kmalloc that is traced as objects"),
    ],
)
def test_each_byte_is_in_one_stack_that_counts(
    stacks: list[Stack], object_classes: tuple[str, ...], counted: list[int]
) -> None:
    assert counted_stacks(stacks, object_classes) == counted
