"""The census of slabs on this machine, against planted objects and the kernel's own figures, while loads run."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.meminfo import MemInfo, parse_meminfo
from memdiag_node.slab.census import CacheCount, SlabCensus
from memdiag_node.slab.layout import object_layout
from support.slab_census import (
    SlabinfoRow,
    large_kmalloc,
    lean_memory,
    load_programs,
    slabinfo_rows,
    surviving_places,
    take_slab_census,
)

pytestmark = pytest.mark.timeout(600)  # of the hundred runs, which take a minute on an idle machine

RUNS = 100
PLANTED = 5_000
_LARGE_BYTES = 1 << 20
_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it
_ONE_CENSUS = Path(__file__).parents[1] / "support/guest_slab_census.py"
_CHURN = Path(__file__).parents[1] / "planted/churn.py"


@pytest.fixture(scope="module")
def btf() -> Btf:
    return Btf.load()


@pytest.fixture(scope="module")
def memory(at: dict[str, int]) -> Iterator[KernelMemory]:
    with lean_memory(at) as opened:
        yield opened


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return object_layout(btf)


@contextlib.contextmanager
def planted_packets() -> Iterator[socket.socket]:
    """PLANTED packets in a queue; yields the socket that owns them."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with sender, receiver:
        sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 << 20)
        sender.setblocking(False)
        for _ in range(PLANTED):
            sender.send(b"x" * 100)
        yield sender


def packets_of(census: SlabCensus, btf: Btf, sender: socket.socket) -> int:
    """The packets that a socket owns, among all objects of the packets' cache."""
    memory = census.memory
    private = memory.word(memory.file(sender.fileno()) + btf.offset_bytes("file", "private_data"))
    sock = memory.word(private + btf.offset_bytes("socket", "sk"))
    (cache,) = census.named("skbuff_head_cache")
    packets = census.objects(cache)
    packets = packets[census.still_allocated(cache, packets)]
    return int((census.read(packets, btf.offset_bytes("sk_buff", "sk")) == np.uint64(sock)).sum())


@contextlib.contextmanager
def churn(*kinds: str) -> Iterator[None]:
    """Healthy loads: processes, files and sockets that come and go."""
    with ExitStack() as loads:
        for kind in kinds:
            load = loads.enter_context(subprocess.Popen([sys.executable, _CHURN, kind], stdout=subprocess.PIPE))
            loads.callback(load.kill)
            assert load.stdout is not None
            assert load.stdout.readline() == b"ready\n"
        yield


@dataclass
class Runs:
    """What was found in many censuses."""

    planted: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    """Caches that differ from slabinfo by more than a percent and more than changed meanwhile, in two censuses."""
    compared: int = 0
    uncertain: list[int] = field(default_factory=list)
    typed: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    """Objects of a type, and those whose own fields prove it."""


@pytest.fixture(scope="module")
def runs(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> Runs:
    """RUNS censuses while loads run, each compared with slabinfo before and after."""
    found = Runs()
    with load_programs(at) as programs, churn("fork", "files", "sockets"), planted_packets() as sender:
        for _ in range(RUNS):
            census, differences, compared = compared_census(memory, btf, at, programs)
            if differences:  # what was freed and allocated elsewhere while pages were read is not seen, but not twice
                _, again, _ = compared_census(memory, btf, at, programs)
                differences = {name: text for name, text in differences.items() if name in again}
            found.compared += compared
            found.differences += differences.values()
            found.planted.append(packets_of(census, btf, sender))
            found.uncertain.append(census.uncertain_objects)
            for name, kind in TYPES.items():
                found.typed.setdefault(name, []).append(prove(kind, census, btf))
    return found


def compared_census(
    memory: KernelMemory, btf: Btf, at: dict[str, int], programs: BpfObject
) -> tuple[SlabCensus, dict[str, str], int]:
    """A census; how it differs from slabinfo before and after it, by cache; and the number of caches compared."""
    before = slabinfo_rows()
    census = take_slab_census(memory, btf, at=at, programs=programs)
    after = slabinfo_rows()
    surviving, found, compared = surviving_places(census), {}, 0
    for number, (cache, count) in enumerate(zip(census.caches, census.count(), strict=True)):
        if count.slab_bytes < _LARGE_BYTES or cache.name not in before or cache.name not in after:
            continue
        compared += 1
        rows = before[cache.name], after[cache.name]
        differences = different_places(count, surviving[number], *rows), different_objects(census, number, count, *rows)
        if any(differences):
            found[cache.name] = f"{cache.name}: {' '.join(differences)}; slabinfo had {rows}"
    return census, found, compared


def different_places(count: CacheCount, surviving: int, before: SlabinfoRow, after: SlabinfoRow) -> str:
    """Places are not fewer than in slabinfo before and after, and those that are left are not more than after."""
    changed = abs(after.places - before.places) + count.vanished
    allowed = 0.01 * max(before.places, after.places)
    fewest = min(before.places, after.places) - changed - allowed
    agrees = count.objects >= fewest and surviving <= after.places + allowed
    return "" if agrees else f"{count.objects} places, {surviving} are left"


def different_objects(
    census: SlabCensus, number: int, count: CacheCount, before: SlabinfoRow, after: SlabinfoRow
) -> str:
    """Objects are not more than slabinfo calls active, or what is left of them: a cache may grow and shrink between."""
    allowed = 0.01 * max(before.places, after.places) + after.uncertain
    if count.in_use - count.uncertain <= max(before.active, after.active) + allowed:
        return ""
    left = int(census.still_allocated(number, census.objects(number)).sum())
    return "" if left <= after.active + allowed else f"{count.in_use} objects, {left} are left"


Objects = npt.NDArray[np.uint64]

READINGS = 3
"""How often an object may try to prove its type: it can be new, with fields that are not set yet, or be taken apart."""
_REST_SECONDS = 0.01  # a process that makes an object may have to wait for a CPU


@dataclass(frozen=True)
class ObjectType:
    """A cache, and what the fields of its objects show if they are objects of that cache."""

    cache: str
    proves: Callable[[SlabCensus, Btf, Objects], npt.NDArray[np.bool_]]
    most: int = sys.maxsize


def prove(kind: ObjectType, census: SlabCensus, btf: Btf) -> tuple[int, int]:
    """How many objects there still are, and how many of them prove their type in any of READINGS."""
    (cache,) = census.named(kind.cache)
    objects = census.objects(cache)
    objects = objects[:: max(1, len(objects) // kind.most)]
    proved = kind.proves(census, btf, objects)
    for _ in range(READINGS - 1):
        if proved.all():
            break
        time.sleep(_REST_SECONDS)
        proved[~proved] = kind.proves(census, btf, objects[~proved])
    alive = census.still_allocated(cache, objects)
    return int(alive.sum()), int((proved & alive).sum())


def is_task(census: SlabCensus, btf: Btf, objects: Objects) -> npt.NDArray[np.bool_]:
    """A task's group leader is a task."""
    leader = census.read(objects, btf.offset_bytes("task_struct", "group_leader"))
    return np.asarray(census.find(leader)[0] == leader)


def is_dentry(census: SlabCensus, btf: Btf, objects: Objects) -> npt.NDArray[np.bool_]:
    """The name of a dentry can be read, and its parent is a dentry."""
    (cache,) = census.named("dentry")
    name = census.read(objects, btf.offset_bytes("dentry", "d_name.name"))
    parent = census.read(objects, btf.offset_bytes("dentry", "d_parent"))
    starts, rows = census.find(parent)
    leads_to_dentry = (starts == parent) & (census.slabs.table["cache"][np.maximum(rows, 0)] == cache)
    return np.asarray(leads_to_dentry & (census.memory.peek(name) != 0))


def is_socket(census: SlabCensus, btf: Btf, objects: Objects) -> npt.NDArray[np.bool_]:
    """A socket's sock, unless it is closed, refers to the socket, and its protocol to a slab cache."""
    socket_of = objects + np.uint64(btf.offset_bytes("socket_alloc", "socket"))
    sock = census.memory.peek(socket_of + np.uint64(btf.offset_bytes("socket", "sk")))
    back = census.memory.peek(sock + np.uint64(btf.offset_bytes("sock", "sk_socket")))
    protocol = census.memory.peek(sock + np.uint64(btf.offset_bytes("sock", "__sk_common.skc_prot")))
    slab = census.memory.peek(protocol + np.uint64(btf.offset_bytes("proto", "slab")))
    known = np.array([0, *(one.address for one in census.caches)], "<u8")  # a protocol without a cache uses kmalloc
    return np.asarray((sock == 0) | ((back == socket_of) & np.isin(slab, known)))


def is_shmem_inode(census: SlabCensus, btf: Btf, objects: Objects) -> npt.NDArray[np.bool_]:
    """A shmem inode's mapping belongs to the inode itself."""
    inode = objects + np.uint64(btf.offset_bytes("shmem_inode_info", "vfs_inode"))
    mapping = census.memory.peek(inode + np.uint64(btf.offset_bytes("inode", "i_mapping")))
    return np.asarray(census.memory.peek(mapping + np.uint64(btf.offset_bytes("address_space", "host"))) == inode)


TYPES = {
    "tasks": ObjectType("task_struct", is_task),
    "dentries": ObjectType("dentry", is_dentry, most=20_000),
    "sockets": ObjectType("sock_inode_cache", is_socket),
    "inodes": ObjectType("shmem_inode_cache", is_shmem_inode),
}


def test_planted_packets_are_counted_exactly_in_every_run(runs: Runs) -> None:
    assert runs.planted == [PLANTED] * RUNS


def test_every_run_agrees_with_slabinfo(runs: Runs) -> None:
    assert runs.compared >= 5 * RUNS
    assert not runs.differences


def test_few_lists_could_not_be_followed(runs: Runs) -> None:
    assert max(runs.uncertain) <= PLANTED // 10


@pytest.mark.parametrize("name", TYPES)
def test_no_object_is_of_a_wrong_type(runs: Runs, name: str) -> None:
    """An object may be freed and used again whenever its fields are read."""
    objects, proved = (sum(column) for column in zip(*runs.typed[name], strict=True))
    assert objects > RUNS
    assert objects - proved <= 0.002 * objects


def slab_bytes() -> int:
    now: MemInfo = parse_meminfo(Path("/proc/meminfo").read_bytes())
    return now.slab_reclaimable_bytes + now.slab_unreclaimable_bytes


def test_the_sum_of_all_slabs_agrees_with_meminfo(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
    """With large kmalloc, which meminfo counts as slab and which has no cache."""
    before = slab_bytes()
    census = take_slab_census(memory, btf, at=at)
    after = slab_bytes()
    counted = sum(count.slab_bytes for count in census.count()) + (large_kmalloc(census, btf) or 0)
    changed = abs(after - before)
    assert 0.98 * min(before, after) - changed <= counted <= 1.005 * max(before, after) + changed


def test_page_types_and_kpageflags_find_the_same_slabs(memory: KernelMemory, btf: Btf, at: dict[str, int]) -> None:
    """Slabs of two censuses one after the other; what differs was made or freed meanwhile."""
    assert "HAS_PAGE_SCAN" in at
    without = {name: value for name, value in at.items() if name != "HAS_PAGE_SCAN"}
    tables = [take_slab_census(memory, btf, at=layout).slabs.table for layout in (at, without, at)]
    rows = [
        set(zip(one["frame"].tolist(), one["cache"].tolist(), one["order"].tolist(), strict=True)) for one in tables
    ]
    steady = rows[0] & rows[2]
    assert len(steady) > 0.5 * len(rows[0])
    assert len(steady - rows[1]) <= 0.001 * len(steady)
    assert len(rows[1] - rows[0] - rows[2]) <= 0.01 * len(rows[1]) + len(rows[0] ^ rows[2])


def test_two_censuses_at_once_in_a_storm_count_exactly() -> None:
    """Two processes plant packets and take a census each, while others allocate and free."""
    with churn("fork", "files", "sockets", "sockets"):
        both = [subprocess.Popen([sys.executable, _ONE_CENSUS], stdout=subprocess.PIPE) for _ in range(2)]
        reports = [json.loads(one.communicate()[0]) for one in both]
    assert [report["counted"] for report in reports] == [report["planted"] for report in reports]
    for report in reports:
        objects = sum(one["in_use"] for one in report["caches"].values())
        assert report["uncertain_objects"] <= 0.001 * objects  # the storm's own, on the lists of CPUs
