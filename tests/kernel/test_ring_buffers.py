"""Ring buffers of perf events and of BPF maps, planted with known size, found with their owner and their pages."""

import numpy as np
import pytest

from memdiag_api.evidence import HolderKind
from memdiag_node.conclusion.join import join_blocks
from memdiag_node.holders.registry import other_holders
from memdiag_node.holding import Holding, unique_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import MIB, PAGE_BYTES, Allocator
from support.sockets import fds_of, holder_layout, owner_of


def ring_buffers(scanner: SocketScanner, pid: int) -> list[Holding]:
    found, _ = other_holders(scanner, scanner.scan(), owner_of, holder_layout())
    return [one for one in found if one.holder.kind is HolderKind.RING_BUFFER and pid in fds_of(one.holder)]


def test_perf_buffers_pin_their_pages(scanner: SocketScanner) -> None:
    with Allocator() as child:
        planted_bytes = child.do("perf_buffers", 4 * MIB)
        held = ring_buffers(scanner, child.pid)
    assert len(held) == 4
    assert sum(one.holder.pinned_bytes for one in held) == planted_bytes
    assert unique_bytes([one.blocks for one in held], page_bytes=PAGE_BYTES) == planted_bytes


def test_a_bpf_ring_buffer_pins_its_pages(scanner: SocketScanner) -> None:
    size_bytes = 2 * MIB
    with Allocator() as child:
        fd = child.do("bpf_ring_buffer", size_bytes)
        (one,) = ring_buffers(scanner, child.pid)
    assert fds_of(one.holder) == {child.pid: [fd]}
    # In addition to the data: the header's page and one for each side's position (kernel/bpf/ringbuf.c).
    assert one.holder.pinned_bytes == size_bytes + 3 * PAGE_BYTES
    assert unique_bytes([one.blocks], page_bytes=PAGE_BYTES) == one.holder.pinned_bytes


def test_another_bpf_map_is_not_a_holder(scanner: SocketScanner) -> None:
    with Allocator() as child:
        child.do("bpf_map", MIB)
        assert not ring_buffers(scanner, child.pid)


@pytest.mark.parametrize(("step", "size_bytes"), [("perf_buffers", 8 * MIB), ("bpf_ring_buffer", 8 * MIB)])
def test_the_pages_are_those_that_the_trace_saw(btf: Btf, scanner: SocketScanner, step: str, size_bytes: int) -> None:
    """So they are allocpage, not vmalloc, and the join finds them."""
    settings = TraceSettings(duration_seconds=2.0, cpu_budget_share=0.0)  # records everything
    with Allocator() as child, PageTrace(settings, roots=HostRoots()) as trace:
        child.do(step, size_bytes)
        held = ring_buffers(scanner, child.pid)
        result = trace.finish()
    overlap = join_blocks(
        result.blocks,
        [np.concatenate([one.blocks for one in held])],
        struct_page_bytes=btf.size_bytes("page"),
        page_bytes=PAGE_BYTES,
    )
    assert overlap.explained_bytes == pytest.approx(size_bytes, rel=0.02)
