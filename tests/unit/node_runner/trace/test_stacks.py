"""Stacks in readable form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.evidence import AllocationUnit, Context, Stack
from memdiag_node.kernel.symbols import function_name
from memdiag_node.trace.stack_classes import page_class
from memdiag_node.trace.stacks import (
    NO_STACK,
    first_name,
    to_folded,
    trim,
)

OUTER = ("vfs_write+0x400", "ksys_write+0xc3", "do_syscall_64+0x71")


@pytest.mark.parametrize(
    ("frames", "trimmed"),
    [
        (("__alloc_frozen_pages_noprof+0x2e9", "alloc_pages_mpol+0x86", "pipe+0x1", *OUTER), ("pipe+0x1", *OUTER)),
        (("bpf_prog_6deef7357e7b4530_on_alloc+0x33 [bpf]", "bpf_trace_run4+0x81", "__alloc_pages+0x5", *OUTER), OUTER),
        (("bpf_dispatcher_xdp+0x4bfd [bpf]", "bpf_trace_run4+0x10d", "alloc_pages_noprof+0x4c", *OUTER), OUTER),
        (("receive+0x9 [virtio_net]", "bpf_trace_run4+0x10d", "refill+0x4c", *OUTER), ("refill+0x4c", *OUTER)),
        (("unnamed#0a1b2c3d", "__traceiter_mm_page_alloc+0x3", "alloc_pages_noprof+0x1", *OUTER), OUTER),
        (("unnamed#0a1b2c3d", "unnamed#4e5f6071"), ("unnamed#0a1b2c3d", "unnamed#4e5f6071")),
        (("bpf_trace_run4+0x10d", "alloc_pages_noprof+0x4c", "unnamed#0a1b2c3d", *OUTER), ("unnamed#0a1b2c3d", *OUTER)),
        (("refill+0xa1", "alloc_pages_noprof+0x1"), ("refill+0xa1", "alloc_pages_noprof+0x1")),
        (("receive_mergeable+0x10 [virtio_net]", *OUTER), ("receive_mergeable+0x10 [virtio_net]", *OUTER)),
        (("__alloc_pages+0x1", "alloc_pages+0x2"), ("alloc_pages+0x2",)),
        ((), NO_STACK),
    ],
)  # fmt: skip
def test_noise_is_removed_from_the_inner_end_only(frames: tuple[str, ...], trimmed: tuple[str, ...]) -> None:
    assert trim(frames) == trimmed


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        ("alloc_pages_noprof+0x1", "alloc_pages"),
        ("__alloc_pages_slowpath.constprop.0+0x9", "__alloc_pages_slowpath"),
        ("receive_mergeable+0x10 [virtio_net]", "receive_mergeable"),
        ("kmalloc_large_node_noprof.cold+0x1", "kmalloc_large_node"),
        ("unnamed#0a1b2c3d", "unnamed#0a1b2c3d"),
    ],
)
def test_function_name(frame: str, name: str) -> None:
    assert function_name(frame) == name


@pytest.mark.parametrize(
    ("frames", "name"),
    [
        (("anon_pipe_write+0x1a8", *OUTER), "AllocPage"),
        (("__vmalloc_node_range_noprof+0x5bb", "bpf_prog_alloc+0x10"), "Vmalloc"),
        (("pcpu_populate_chunk+0x1", "pcpu_alloc_noprof+0x2"), "Percpu"),
        (("___kmalloc_large_node+0x7d", "__kmalloc_large_node_noprof+0x17"), "Slab"),
        (("pte_alloc_one+0x16", "__pte_alloc+0x1"), "PageTables"),
        (("__pte_alloc_kernel+0x1", "__vmalloc_node_range_noprof+0x1"), "PageTables"),
        (("zs_malloc+0x1",), "Zsmalloc"),
        (NO_STACK, "AllocPage"),
    ],
)
def test_memory_class(frames: tuple[str, ...], name: str) -> None:
    assert page_class(frames) == name


def stack(frames: list[str], outstanding_bytes: int) -> Stack:
    return Stack(frames=frames, context=Context.PROCESS, outstanding_bytes=outstanding_bytes, outstanding_blocks=1)


def test_folded_stacks_are_what_flame_graph_tools_read() -> None:
    text = to_folded(
        [stack(["inner+0x1 [module]", "outer+0x2"], 4096), stack(["gone+0x1"], 0), stack(["a;b+0x1"], 8192)]
    )
    assert text == "AllocPage;outer+0x2;inner+0x1_[module] 4096\nAllocPage;a_b+0x1 8192\n"


def test_folded_stacks_have_the_class_and_the_cache_as_their_root() -> None:
    slab = stack(["inner+0x1", "outer+0x2"], 4096).model_copy(update={"memory_class": "Slab", "slab_cache": "a;b"})
    objects = slab.model_copy(update={"unit": AllocationUnit.OBJECTS, "outstanding_bytes": 3000})
    assert to_folded([slab]) == "Slab;a_b;outer+0x2;inner+0x1 4096\n"
    assert to_folded([slab, objects], ["Slab"]) == "Slab;a_b;outer+0x2;inner+0x1 3000\n"


@given(st.lists(st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5), max_size=5))
def test_every_folded_line_has_one_number_at_its_end(all_frames: list[list[str]]) -> None:
    for line in to_folded([stack(frames, 4096) for frames in all_frames]).split("\n")[:-1]:
        assert line.rsplit(" ", 1)[1] == "4096"


def test_what_an_interrupt_interrupted_is_not_part_of_the_stack() -> None:
    receive = ["skb_page_frag_refill+0xa1", "try_fill_recv+0x311", "net_rx_action+0x16e", "handle_softirqs+0xcd"]
    interrupted = ["common_interrupt+0x79", "asm_common_interrupt+0x22", "filemap_read+0x1ee"]
    assert trim([*receive, *interrupted]) == tuple(receive)
    assert trim(["alloc_pages+0x1", "driver_irq+0x2", "common_interrupt+0x79", "vfs_read+0x3"]) == (
        "driver_irq+0x2",
        "common_interrupt+0x79",
    )


@pytest.mark.parametrize(
    ("frames", "name"),
    [
        (OUTER, "vfs_write+0x400"),
        (("unnamed#0a1b2c3d", *OUTER), "vfs_write+0x400"),
        (("unnamed#0a1b2c3d", "unnamed#4e5f6071"), None),
        (NO_STACK, None),
        ((), None),
    ],
)
def test_first_name(frames: tuple[str, ...], name: str | None) -> None:
    assert first_name(frames) == name
