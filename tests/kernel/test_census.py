"""The census of page frames against loads of known size: who is charged, and the order of their blocks."""

from collections.abc import Callable
from pathlib import Path

import pytest

from memdiag_api.evidence import Census, Check, Evidence, NeedState
from memdiag_api.units import format_bytes
from memdiag_node.cgroups.tree import container_cgroups, memory_cgroup_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.time_budget import Stop
from planted.memory import MIB, PlantedMemory
from support.machine_noise import too_busy
from support.memory_cgroup import container_cgroup

TOLERANCE = 0.02
QUIET_BYTES = 2 * MIB
PLANTED_BYTES = 192 * MIB
ROUNDS = 12
RING_ORDER = 4  # its blocks have 64 KiB
FRAGMENT_ORDER = 3  # the network stack cuts its fragments from blocks of 32 KiB


def evidence_of(*checks: Check, roots: HostRoots | None = None) -> Evidence:
    settings = Settings(run_id="census", node_name="here", checks=checks or tuple(Check), duration_seconds=1.0)
    return measure(settings, roots=roots or HostRoots(), stop=Stop(), progress=lambda _: None)


def census_of(evidence: Evidence) -> Census:
    assert evidence.census is not None
    assert evidence.census.scanned_share == 1
    return evidence.census


def blocks_of(census: Census, order: int) -> tuple[int, int]:
    """Bytes of blocks of that order, and the part of it in known holders."""
    found = [one for one in census.compound if one.order == order]
    return sum(one.size_bytes for one in found), sum(one.held_bytes or 0 for one in found)


def test_pages_in_pipes_are_charged_to_the_container_that_filled_them() -> None:
    """Including those written before the window; and they are found in the pipes, frame by frame."""
    with container_cgroup() as container, PlantedMemory("pipes", 64 * MIB) as load:
        container.add(load.pid)
        planted_bytes = load.plant()
        census = census_of(evidence_of())
    assert census.charged is not None
    (share,) = [one for one in census.charged if one.container_id == container.container_id]
    assert share.pod_uid == container.pod_uid
    assert share.single_bytes == pytest.approx(planted_bytes, rel=TOLERANCE)
    assert share.held_bytes == pytest.approx(planted_bytes, rel=TOLERANCE)
    assert share.compound_bytes < TOLERANCE * planted_bytes


@pytest.mark.parametrize(("kind", "order"), [("tcp_queues", FRAGMENT_ORDER), ("packet_ring", RING_ORDER)])
def test_fragments_and_rings_are_compound_blocks_of_their_order(kind: str, order: int) -> None:
    """Other work on the machine allocates and frees such blocks too: a round with such work shows after the release."""
    moved_bytes = []
    for _ in range(ROUNDS):
        with PlantedMemory(kind, PLANTED_BYTES) as load:
            before, _ = blocks_of(census_of(evidence_of(Check.BREAKDOWN)), order)
            planted_bytes = load.plant()
            during, _ = blocks_of(census_of(evidence_of(Check.BREAKDOWN)), order)
            load.release()
            after, _ = blocks_of(census_of(evidence_of(Check.BREAKDOWN)), order)
        moved_bytes.append(abs(after - before))
        if moved_bytes[-1] <= QUIET_BYTES:
            assert during - (before + after) / 2 == pytest.approx(planted_bytes, rel=TOLERANCE)
            return
    raise too_busy(
        f"blocks of order {order} moved by {format_bytes(min(moved_bytes))} or more in each of {ROUNDS} rounds"
    )


@pytest.mark.parametrize(("kind", "order"), [("tcp_queues", FRAGMENT_ORDER), ("packet_ring", RING_ORDER)])
def test_blocks_of_known_holders_are_counted_separately(kind: str, order: int) -> None:
    with PlantedMemory(kind, PLANTED_BYTES) as load:
        planted_bytes = load.plant()
        size_bytes, held_bytes = blocks_of(census_of(evidence_of()), order)
    assert (1 - TOLERANCE) * planted_bytes <= held_bytes <= size_bytes


def test_without_the_trace_it_does_not_say_what_is_held() -> None:
    census = census_of(evidence_of(Check.BREAKDOWN))
    assert {one.held_bytes for one in census.compound} == {None}
    assert {one.held_bytes for one in census.charged or ()} == {None}


@pytest.fixture
def proc_without(tmp_path: Path) -> Callable[[str], HostRoots]:
    """A view of /proc that lacks one file."""

    def make(missing: str) -> HostRoots:
        for path in Path("/proc").iterdir():
            if path.name != missing:
                (tmp_path / path.name).symlink_to(path)
        return HostRoots(proc=tmp_path)

    return make


@pytest.mark.parametrize(("missing", "need_name"), [("kpageflags", "page flags"), ("kpagecgroup", "page charges")])
def test_what_is_missing_is_named_and_the_rest_is_reported(
    proc_without: Callable[[str], HostRoots], missing: str, need_name: str
) -> None:
    evidence = evidence_of(Check.BREAKDOWN, roots=proc_without(missing))
    (need,) = [one for one in evidence.needs if one.name == need_name]
    assert need.state is NeedState.DEGRADED
    assert missing in need.detail
    assert evidence.breakdown is not None
    if missing == "kpageflags":
        assert evidence.census is None
    else:
        census = census_of(evidence)
        assert census.charged is None
        assert census.compound


def test_every_container_is_found_in_the_kernels_tree_of_cgroups() -> None:
    """Including one inside another, as of an engine inside a container, which counts as the outer one."""
    btf = Btf.load()
    with container_cgroup() as container, SocketScanner(btf=btf) as scanner:
        inner = container.path / "inner"
        inner.mkdir()
        try:
            found = container_cgroups(scanner.source.memory, memory_cgroup_layout(btf))
        finally:
            inner.rmdir()
        inodes = container.path.stat().st_ino, container.path.parent.stat().st_ino
    identity = ContainerIdentity(container.container_id, container.pod_uid)
    assert found[inodes[0]] == identity
    assert found[inodes[1]] == ContainerIdentity("", container.pod_uid)
    assert list(found.values()).count(identity) == 2
