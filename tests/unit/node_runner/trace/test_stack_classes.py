"""Allocators are removed from stacks of objects, on all supported kernels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.memory_classes import ClassName
from memdiag_node.trace.stack_classes import callers, is_vmalloc

SLAB_ALLOCATORS = [
    # Linux 5.10
    ("kmem_cache_alloc+0x11e",),
    ("__kmalloc+0x162",),
    ("kmem_cache_alloc_trace+0xf5",),
    ("__kmalloc_node_track_caller+0x1c4", "kmemdup+0x1a"),
    ("kmem_cache_alloc_node_trace+0x1",),
    # Linux 6.1
    ("__kmem_cache_alloc_node+0x1cb", "__kmalloc+0x4a"),
    ("__kmem_cache_alloc_node+0x1cb", "kmalloc_trace+0x26"),
    ("kmem_cache_alloc_lru+0x1b0",),
    ("__kmalloc_node+0x4d", "kvmalloc_node+0x42"),
    # Linux 6.18
    ("kmem_cache_alloc_noprof+0x1f1",),
    ("__kmalloc_cache_noprof+0x231",),
    ("__kmalloc_node_track_caller_noprof+0x2bb", "kstrdup+0x3b", "kstrdup_const+0x2e"),
    ("__kmalloc_node_noprof+0x2d9", "__kvmalloc_node_noprof+0x5f"),
    ("___slab_alloc+0x8aa", "__slab_alloc.constprop.0+0x3a", "kmem_cache_alloc_lru_noprof+0x100"),
    ("alloc_from_pcs+0x51", "kmem_cache_alloc_noprof+0x1f1"),
    ("kmem_cache_alloc_noprof+0x1f1", "__alloc_empty_sheaf+0x3c", "__pcs_replace_empty_main+0x1a0"),
]
CALLERS = ("alloc_empty_file+0x5d", "path_openat+0x41", "do_syscall_64+0x83")


@pytest.mark.parametrize("allocator", SLAB_ALLOCATORS, ids="/".join)
def test_slab_objects_belong_to_the_caller_of_the_allocator(allocator: tuple[str, ...]) -> None:
    assert callers((*allocator, *CALLERS), ClassName.SLAB) == (ClassName.SLAB, CALLERS)


@pytest.mark.parametrize(
    "allocator",
    [
        ("alloc_vmap_area+0x2c", "__get_vm_area_node+0xe6", "__vmalloc_node_range+0xae", "vmalloc+0x4b"),  # 6.2
        (
            *("alloc_vmap_area+0x4a1", "__get_vm_area_node+0xa7", "__vmalloc_node_range_noprof+0x121"),
            *("__kvmalloc_node_noprof+0x2ae",),
        ),  # 6.18
        ("alloc_vmap_area+0x4a1", "__get_vm_area_node+0xa7", "__vmalloc_node_range_noprof+0x121", "vzalloc_noprof+0x5"),
    ],
)
def test_areas_of_vmalloc_belong_to_its_caller(allocator: tuple[str, ...]) -> None:
    assert is_vmalloc((*allocator, *CALLERS))
    assert callers((*allocator, *CALLERS), ClassName.VMALLOC) == (ClassName.VMALLOC, CALLERS)


@pytest.mark.parametrize(
    "thread", [("alloc_thread_stack_node.isra.0+0x5",), ("dup_task_struct+0x54",), ("copy_process+0x1e6",)]
)
def test_areas_of_threads_are_kernel_stacks(thread: tuple[str, ...]) -> None:
    allocator = ("alloc_vmap_area+0x4a1", "__get_vm_area_node+0xa7", "__vmalloc_node_range_noprof+0x121")
    rest = (*thread, "kernel_clone+0x98")
    assert callers((*allocator, *rest), ClassName.VMALLOC) == (ClassName.KERNEL_STACK, rest)
    assert callers(rest, ClassName.SLAB) == (ClassName.SLAB, rest)


def test_other_areas_are_not_of_vmalloc() -> None:
    assert not is_vmalloc(("alloc_vmap_area+0x4a1", "__get_vm_area_node+0xa7", "get_vm_area_caller+0x3f", "vmap+0x4c"))
    assert not is_vmalloc(("alloc_vmap_area+0x4a1", "vm_map_ram+0x123"))


@pytest.mark.parametrize("name", ["__alloc_percpu", "__alloc_percpu_gfp", "pcpu_alloc_noprof"])
def test_per_cpu_memory_belongs_to_the_caller_of_its_allocator(name: str) -> None:
    frames = ("pcpu_alloc+0x2e4", f"{name}+0x15", "mnt_init+0x1")
    assert callers(frames, ClassName.PERCPU) == (ClassName.PERCPU, ("mnt_init+0x1",))


_NAMES = st.sampled_from([frame for frames in SLAB_ALLOCATORS for frame in frames] + ["alloc_vmap_area+0x1", *CALLERS])


@given(st.lists(_NAMES, min_size=1, max_size=8), st.sampled_from(list(ClassName)))
def test_only_inner_frames_are_removed_and_never_all(frames: list[str], memory_class: ClassName) -> None:
    _, rest = callers(frames, memory_class)
    assert rest
    assert tuple(frames[-len(rest) :]) == rest
