"""Rings of io_uring: their pages are those that the trace saw allocated, and their owner is named."""

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
from planted.sockets.common import MIB, PAGE_BYTES
from planted.sockets.planter import Planter
from support.sockets import fds_of, holder_layout, owner_of

RINGS, ENTRIES = 10, 32_768
SQE_BYTES, CQE_BYTES = 64, 16  # include/uapi/linux/io_uring.h; twice as many completions as submissions


def io_urings(scanner: SocketScanner, pid: int) -> Holding:
    found, _ = other_holders(scanner, scanner.scan(), owner_of, holder_layout())
    (one,) = [one for one in found if one.holder.kind is HolderKind.IO_URING and pid in fds_of(one.holder)]
    return one


def test_the_pages_are_those_that_the_trace_saw(btf: Btf, scanner: SocketScanner, planter: Planter) -> None:
    settings = TraceSettings(duration_seconds=2.0, cpu_budget_share=0.0)  # records everything
    with PageTrace(settings, roots=HostRoots()) as trace:
        truth = planter.plant("io_urings", RINGS, ENTRIES)
        held = io_urings(scanner, planter.pid)
        result = trace.finish()
    assert fds_of(held.holder) == {planter.pid: truth["fds"]}
    assert held.holder.summed == RINGS
    assert f"up to {ENTRIES} entries" in held.holder.description
    pinned_bytes = held.holder.pinned_bytes
    assert pinned_bytes >= RINGS * ENTRIES * (SQE_BYTES + 2 * CQE_BYTES)
    assert pinned_bytes == unique_bytes([held.blocks], page_bytes=PAGE_BYTES)
    overlap = join_blocks(result.blocks, [held.blocks], struct_page_bytes=btf.size_bytes("page"), page_bytes=PAGE_BYTES)
    assert overlap.explained_bytes == pytest.approx(pinned_bytes, rel=0.02)


def test_rings_of_provided_buffers_count_and_registered_buffers_do_not(
    scanner: SocketScanner, planter: Planter
) -> None:
    truth = planter.plant("io_uring_with_buffers", ENTRIES, 4 * MIB)
    held = io_urings(scanner, planter.pid)
    assert truth["ring_bytes"] < held.holder.pinned_bytes < truth["ring_bytes"] + 0.1 * MIB
    assert "with 4.00 MiB of registered buffers (memory of the process)" in held.holder.description


def test_without_an_io_uring_of_this_process_the_name_of_their_function_is_enough(
    btf: Btf, planter: Planter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where seccomp or kernel.io_uring_disabled forbids it."""

    def forbidden() -> int:
        raise PermissionError

    monkeypatch.setattr("memdiag_node.sockets.source.open_idle_io_uring", forbidden)
    truth = planter.plant("io_urings", 2, 64)
    with SocketScanner(btf=btf) as scanner:
        assert fds_of(io_urings(scanner, planter.pid).holder) == {planter.pid: truth["fds"]}


def test_a_registered_buffer_that_no_process_maps_is_kept_by_its_ring(scanner: SocketScanner, planter: Planter) -> None:
    truth = planter.plant("io_uring_unmapped_buffer", 64 * MIB)
    held = io_urings(scanner, planter.pid)
    assert fds_of(held.holder) == {planter.pid: [truth["fd"]]}
    assert 64 * MIB < held.holder.pinned_bytes < 64.1 * MIB
    assert "64.0 MiB of which no process maps any more" in held.holder.description
