"""AF_XDP sockets: the memory of their rings, compared with the kernel's own list of vmalloc areas."""

import mmap
from pathlib import Path

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.common import MIB, PAGE_BYTES
from planted.sockets.planter import Planter
from support.sockets import fds_of, other_holders_of

ENTRIES = 1 << 16


def xdp_sockets(scanner: SocketScanner, pid: int) -> list[Holder]:
    found = other_holders_of(scanner, scanner.scan())
    return [one for one in found if one.kind is HolderKind.XDP_SOCKET and pid in fds_of(one)]


def ring_areas_bytes() -> int:
    """Of the rings of all AF_XDP sockets, without the guard page of each."""
    lines = Path("/proc/vmallocinfo").read_text().splitlines()
    return sum(int(line.split()[1]) - PAGE_BYTES for line in lines if "xskq_create" in line)


def test_rings_are_counted_and_umem_is_mentioned(scanner: SocketScanner, planter: Planter) -> None:
    before_bytes = ring_areas_bytes()
    truth = planter.plant("xdp_socket", ENTRIES, 256)
    (one,) = xdp_sockets(scanner, planter.pid)
    assert fds_of(one) == {planter.pid: [truth["fd"]]}
    assert one.memory_class == "Vmalloc"
    assert one.pinned_bytes == ring_areas_bytes() - before_bytes
    assert one.pinned_bytes == pytest.approx(truth["ring_bytes"], rel=0.02)
    assert "with 1.00 MiB of umem (memory of the process)" in one.description
    assert truth["user_bytes"] == MIB


@pytest.mark.parametrize("flags", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_umem_that_no_process_maps_is_kept_by_the_socket(scanner: SocketScanner, planter: Planter, flags: int) -> None:
    truth = planter.plant("xdp_unmapped_umem", 64 * MIB, flags)
    rings, umem = xdp_sockets(scanner, planter.pid)
    if umem.memory_class != "AllocPage":
        rings, umem = umem, rings
    assert (umem.memory_class, umem.pinned_bytes) == ("AllocPage", 64 * MIB)
    assert fds_of(umem) == {planter.pid: [truth["fd"]]}
    assert "no process maps any more" in umem.description
    assert rings.pinned_bytes == 0


def test_each_socket_has_its_own(scanner: SocketScanner, planter: Planter) -> None:
    truths = [planter.plant("xdp_socket", ENTRIES >> 4, 16) for _ in range(3)]
    found = xdp_sockets(scanner, planter.pid)
    assert {fds_of(one)[planter.pid][0] for one in found} == {truth["fd"] for truth in truths}
