"""The ledger and the join on planted loads: what grew in the window is named, by holder, stack, process, container."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memdiag_api.evidence import Check, Evidence, HolderKind, VerdictKind
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.memory import MIB, PlantedMemory
from support.machine_noise import Noise
from support.memory_cgroup import ContainerCgroup, container_cgroup

PLANTED = {"pipes": 200 * MIB, "tcp_queues": 160 * MIB, "packet_ring": 160 * MIB}
WINDOW_SECONDS = 6.0
KINDS = {"pipes": HolderKind.PIPE, "tcp_queues": HolderKind.SOCKET, "packet_ring": HolderKind.PACKET_RING}


LARGE_DATAGRAMS, LARGE_DATAGRAM_BYTES = 2000, 16_000  # of UNIX sockets: each has its head in 16 KiB of large kmalloc
_SO_SNDBUFFORCE = 32  # socket(7)


@pytest.fixture(scope="module")
def containers() -> Iterator[dict[str, ContainerCgroup]]:
    """One for each load."""
    with ExitStack() as groups:
        yield {kind: groups.enter_context(container_cgroup()) for kind in PLANTED}


@pytest.fixture(scope="module")
def loads(containers: dict[str, ContainerCgroup]) -> Iterator[dict[str, PlantedMemory]]:
    with ExitStack() as children:
        planted = {kind: children.enter_context(PlantedMemory(kind, size)) for kind, size in PLANTED.items()}
        for kind, load in planted.items():
            containers[kind].add(load.pid)
        yield planted


@pytest.fixture(scope="module")
def planted_bytes(loads: dict[str, PlantedMemory]) -> dict[str, int]:
    """Filled by the run itself, right after its trace has started."""
    assert loads
    return {}


@pytest.fixture(scope="module")
def evidence(loads: dict[str, PlantedMemory], planted_bytes: dict[str, int], noise_before: Noise) -> Evidence:
    assert noise_before

    def plant_when_tracing(progress: str) -> None:
        if progress.startswith("tracing"):
            planted_bytes.update({kind: load.plant() for kind, load in loads.items()})

    settings = Settings(run_id="ledger", node_name="here", checks=tuple(Check), duration_seconds=WINDOW_SECONDS)
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=plant_when_tracing)


def test_at_least_95_percent_of_the_growth_are_explained(
    evidence: Evidence, planted_bytes: dict[str, int], noise: Noise
) -> None:
    assert evidence.breakdown is not None
    assert evidence.ledger is not None
    growth = evidence.breakdown.alloc_page_change_bytes
    planted = sum(planted_bytes.values())
    tolerated = noise.tolerated_bytes(0.05 * planted)
    assert growth == pytest.approx(planted, abs=tolerated), str(noise)
    kinds = {f"{kind.value}s" for kind in KINDS.values()}
    named = sum(line.size_bytes for line in evidence.ledger.lines if line.name in kinds)
    assert growth - named <= tolerated, str(noise)


@pytest.mark.parametrize("kind", PLANTED)
def test_each_load_is_held_by_its_process(
    evidence: Evidence, loads: dict[str, PlantedMemory], planted_bytes: dict[str, int], kind: str
) -> None:
    held = sum(
        holder.pinned_bytes
        for holder in evidence.holders
        if holder.kind is KINDS[kind] and any(owner.pid == loads[kind].pid for owner in holder.owners)
    )
    assert held == pytest.approx(planted_bytes[kind], rel=0.05)


def test_the_lines_and_the_rest_are_allocpage(evidence: Evidence) -> None:
    assert evidence.breakdown is not None
    assert evidence.ledger is not None
    total = sum(line.size_bytes for line in evidence.ledger.lines) + evidence.ledger.unexplained_bytes
    assert total == evidence.ledger.alloc_page_bytes == evidence.breakdown.alloc_page_bytes


@pytest.mark.parametrize("kind", PLANTED)
def test_each_load_is_listed_under_its_container(
    evidence: Evidence, containers: dict[str, ContainerCgroup], planted_bytes: dict[str, int], kind: str
) -> None:
    assert evidence.ledger is not None
    (share,) = [one for one in evidence.ledger.containers if one.container_id == containers[kind].container_id]
    assert share.pod_uid == containers[kind].pod_uid
    assert share.size_bytes == pytest.approx(planted_bytes[kind], rel=0.05)


def test_the_join_finds_the_traced_blocks_in_the_holders(
    evidence: Evidence, planted_bytes: dict[str, int], noise: Noise
) -> None:
    assert evidence.trace is not None
    planted = sum(planted_bytes.values())
    explained = sum(stack.explained_bytes for stack in evidence.stacks)
    assert explained >= 0.95 * planted
    assert evidence.trace.outstanding_bytes - explained <= noise.tolerated_bytes(0.05 * planted), str(noise)


@pytest.mark.parametrize(
    ("kind", "function"), [("pipes", "pipe_write"), ("tcp_queues", "tcp_sendmsg"), ("packet_ring", "packet_set_ring")]
)
def test_each_stack_is_held_by_the_right_kind(
    evidence: Evidence, planted_bytes: dict[str, int], noise: Noise, kind: str, function: str
) -> None:
    stack = next(one for one in evidence.stacks if any(function in frame for frame in one.frames))
    assert stack.held_by
    assert evidence.holders[stack.held_by[0].holder].kind is KINDS[kind]
    unexplained_bytes, tolerance_bytes = stack.outstanding_bytes - stack.explained_bytes, 0.05 * planted_bytes[kind]
    # Other processes may have used the same path: only then does the machine's noise matter.
    if unexplained_bytes > tolerance_bytes:
        assert unexplained_bytes <= noise.tolerated_bytes(tolerance_bytes), str(noise)


def test_when_the_holders_are_gone_nothing_is_left(evidence: Evidence, loads: dict[str, PlantedMemory]) -> None:
    assert evidence.holders
    for load in loads.values():
        load.release()
    settings = Settings(run_id="after", node_name="here", checks=tuple(Check), duration_seconds=2.0)
    after = measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)
    assert after.verdict.kind is VerdictKind.NO_LEAK, after.verdict
    pids = {load.pid for load in loads.values()}
    assert not [one for one in after.holders if one.pinned_bytes > MIB and pids & {owner.pid for owner in one.owners}]


@pytest.fixture
def long_unix_queues() -> Iterator[None]:
    path = Path("/proc/sys/net/unix/max_dgram_qlen")
    before = path.read_text()
    path.write_text(str(2 * LARGE_DATAGRAMS))
    try:
        yield
    finally:
        path.write_text(before)


@pytest.mark.usefixtures("long_unix_queues")
def test_packets_in_large_kmalloc_are_pinned_and_not_allocpage() -> None:
    """The kernel counts large kmalloc as slab, so it is not part of the memory that the ledger splits."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 30)
    settings = Settings(run_id="slab", node_name="here", checks=tuple(Check), duration_seconds=1.0)
    with receiver, sender:
        for _ in range(LARGE_DATAGRAMS):
            sender.send(b"d" * LARGE_DATAGRAM_BYTES)
        inode = Path(f"/proc/self/fd/{receiver.fileno()}").stat().st_ino
        evidence = measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)
    queued_bytes = LARGE_DATAGRAMS * LARGE_DATAGRAM_BYTES
    (holder,) = [one for one in evidence.holders if one.socket and one.socket.inode == inode]
    assert holder.pinned_bytes >= queued_bytes
    assert evidence.ledger is not None
    assert evidence.breakdown is not None
    sockets_bytes = next(line.size_bytes for line in evidence.ledger.lines if line.name == "Sockets")
    pinned_bytes = sum(one.pinned_bytes for one in evidence.holders if one.kind is HolderKind.SOCKET)
    assert pinned_bytes - sockets_bytes >= queued_bytes
