"""Layouts of Linux 5.10 (Debian 11's linux-image-5.10.0-46-cloud-amd64), from its own BTF, cut by tools/cut_btf.py."""

from pathlib import Path

import pytest

from memdiag_api.evidence import NeedState
from memdiag_node.cgroups.layout import STATES, account_layout
from memdiag_node.holders.registry import holder_fields
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import memory_layout
from memdiag_node.preflight.bpf import _slab_allocator
from memdiag_node.slab.layout import object_layout
from memdiag_node.sockets.source import socket_defines
from memdiag_node.trace.pages.page_trace import _layout as trace_defines
from memdiag_node.walker.walker import queue_defines

RECORDED = Path(__file__).parents[3] / "fixtures/btf/linux-5.10-x86_64.btf"
PAGE_STRUCT_BYTES = 64


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.parse(RECORDED.read_bytes(), source=RECORDED.name)


def test_a_slab_is_a_struct_page(btf: Btf) -> None:
    assert not btf.has_struct("slab")
    layout = memory_layout(btf)
    assert layout["HAS_SLAB"] == 1
    assert [layout[name] for name in ("SLAB_LIST", "SLAB_CACHE", "SLAB_FREELIST")] == [8, 24, 32]
    assert btf.offset_bytes("page", "lru") == 8, "the list that slabs are on takes the place of the LRU lists"


def test_the_census_has_what_it_needs(btf: Btf) -> None:
    layout = object_layout(btf)
    assert {name for name in layout if name.startswith("HAS_")} == {
        *("HAS_SLAB", "HAS_SLAB_OBJECTS", "HAS_PAGE_SCAN", "HAS_PER_CPU_ARRAY"),
        *("HAS_HARDENED_FREELIST", "HAS_RED_ZONE", "HAS_CPU_SLAB"),
    }
    assert [layout[name] for name in ("SLAB_COUNTERS", "SLAB_BIT", "RED_ZONE")] == [40, 9, 1 << 10]


def test_packet_rings_perf_buffers_and_ring_buffers_are_found(btf: Btf) -> None:
    defines = socket_defines(btf) | memory_layout(btf) | holder_fields(btf)
    assert {name for name in defines if name.startswith("HAS_")} >= {
        *("HAS_SLAB", "HAS_PACKET", "HAS_PERF_BUFFER", "HAS_RING_BUFFER", "HAS_IPV6", "HAS_DEVICES")
    }


def test_the_order_of_a_block_is_in_its_second_page(btf: Btf) -> None:
    defines = queue_defines(btf)
    assert defines["STRUCT_PAGE_BYTES"] == PAGE_STRUCT_BYTES
    assert defines["PAGE_ORDER"] == PAGE_STRUCT_BYTES + btf.offset_bytes("page", "compound_order")
    assert defines["PAGE_ORDER"] < defines["PAGE_READ_BYTES"]
    assert "COMPOUND_MAY_BE_MASK" not in defines


def test_the_trace_and_the_cgroup_tree_have_what_they_need(btf: Btf) -> None:
    assert trace_defines(btf)["STRUCT_PAGE_BYTES"] == PAGE_STRUCT_BYTES
    assert account_layout(btf)["HAS_MEMORY_CGROUPS"] == 1


def test_the_accounts_of_containers_have_what_they_need(btf: Btf) -> None:
    layout = account_layout(btf)
    assert {"HAS_MEMORY_ACCOUNTS", "HAS_LRU_SIZES", "HAS_TCP_ACCOUNTS", "EVENT_MAX", "MEMCG_SWAP"} <= layout.keys()
    assert STATES.keys() - layout.keys() == {"STATE_KERNEL"}, "since Linux 5.18"
    assert layout["STATE"] == btf.offset_bytes("mem_cgroup", "vmstats")
    assert not {"STATE_POINTER", "STATE_BY_PLACE"} & layout.keys()


def test_a_kernel_with_another_slab_allocator_is_refused_in_plain_words() -> None:
    """As with CONFIG_SLAB, where a node's partly used slabs are `slabs_partial`, and a cache has no free pointer."""
    recorded = RECORDED.read_bytes()
    renamed = recorded.replace(b"\0partial\0", b"\0slabs_p\0")
    assert renamed != recorded
    btf = Btf.parse(renamed, source="slab")
    assert object_layout(btf) == {}
    need = _slab_allocator(btf)
    assert need.state is NeedState.MISSING
    assert need.detail == (
        "The kernel has another slab allocator than SLUB, or one with an unknown layout. Its objects are not read."
    )
