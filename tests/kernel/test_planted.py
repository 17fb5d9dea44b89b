"""The planted loads themselves: what each says that it planted is what the kernel's own accounts and tools say."""

import bisect
import collections
import contextlib
import errno
import json
import mmap
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from memdiag_node.census.networks.namespaces import fields, read_namespaces
from memdiag_node.census.networks.record import is_zombie
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from planted import bpf_and_xdp, files, held_by_fd, nfqueue, packets, psock
from planted.sockets.common import MIB, PAGE_BYTES
from support.foreign_fds import duplicate, read_all
from support.slab_census import opened_memory, take_slab_census

_IORING_OFF_SQES = 0x10000000
# include/uapi/linux/if_xdp.h: where the rings for RX, TX, fill and completion are mapped
_XDP_OFFSETS = (0, 0x80000000, 0x100000000, 0x180000000)
_GONE_SECONDS, _NAMESPACE_GONE_SECONDS = 20, 120
# Nothing but slabinfo shows these packets when their processes are gone, and it counts everybody's: so they are many.
_ZOMBIE_PACKETS, _OTHERS = 100_000, 0.2
_FEW_PACKETS = 100
_MOST_PAGES = 1 << 12  # of one ring here


def inside(pid: int, *command: str, namespace: str = "net") -> str:
    """The output of a program in a namespace of a process."""
    entered = ["nsenter", f"--target={pid}", f"--{namespace}", *command]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


def udp_queues(pid: int) -> list[tuple[int, int, int, int]]:
    """Bytes to send, bytes received, inode and drops of each UDP socket of a process's network (man 5 proc)."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]]
    return [(int(row[4][:8], 16), int(row[4][9:], 16), int(row[9]), int(row[12])) for row in rows]


def active_objects(cache: str) -> int:
    for line in Path("/proc/slabinfo").read_text().splitlines():
        if line.split()[0] == cache:
            return int(line.split()[1])
    return 0


def objects_of_size(size_bytes: int) -> collections.Counter[str]:
    """The objects in use in each cache with objects of this size."""
    rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return collections.Counter({row[0]: int(row[1]) for row in rows if int(row[3]) == size_bytes})


def test_slab_heads_are_in_the_receive_queue_of_one_socket() -> None:
    with held_by_fd.slab_heads() as planted:
        ((_, charge_bytes, inode, drops),) = udp_queues(planted.pid)
        assert (inode, drops) == (planted.inode, 0)
        assert charge_bytes % planted.datagrams == 0
        assert charge_bytes > planted.unread_bytes
        assert read_all(planted.pid, planted.fd) == planted.unread_bytes


def test_tun_queue_has_been_sent_and_can_be_read() -> None:
    with held_by_fd.tun_queue() as planted:
        shown = inside(planted.pid, "tc", "-json", "-stats", "qdisc", "show", "dev", planted.device)
        (qdisc,) = json.loads(shown)
        figures = [qdisc[name] for name in ("packets", "bytes", "backlog", "drops")]
        assert figures == [planted.packets, planted.packet_bytes, 0, 0]
        with duplicate(planted.pid, planted.fd) as tun:
            assert sum(len(os.read(tun, 1 << 16)) for _ in range(planted.packets)) == planted.packet_bytes
            os.set_blocking(tun, False)
            with pytest.raises(BlockingIOError):
                os.read(tun, 1 << 16)


def test_slab_leak_fills_objects_of_its_size_and_leaves_the_machines_limits() -> None:
    limits = [Path(f"/proc/sys/kernel/msgm{name}").read_text() for name in ("nb", "ax")]
    before = objects_of_size(PAGE_BYTES)
    with held_by_fd.slab_leak() as planted:
        rows = inside(planted.pid, "cat", "/proc/sysvipc/msg", namespace="ipc").splitlines()
        (row,) = [line.split() for line in rows[1:] if int(line.split()[1]) == planted.queue]
        assert int(row[4]) == planted.messages
        ((cache, growth),) = (objects_of_size(planted.object_bytes) - before).most_common(1)
        assert cache.startswith(("kmalloc-", "msg_msg-"))
        assert growth == pytest.approx(planted.messages, rel=0.02)  # others use the cache too
        assert [Path(f"/proc/sys/kernel/msgm{name}").read_text() for name in ("nb", "ax")] == limits


def test_io_uring_rings_have_pages_up_to_their_end() -> None:
    with held_by_fd.io_uring_rings(rings=3) as planted:
        mapped_bytes = 0
        for fd in planted.fds:
            with duplicate(planted.pid, fd) as ring:
                mapped_bytes += mappable_bytes(ring, 0) + mappable_bytes(ring, _IORING_OFF_SQES)
        assert mapped_bytes == planted.ring_bytes


def mappable_bytes(fd: int, offset: int) -> int:
    """The size of the memory behind an fd. A longer mapping fails, or has no pages behind that size."""
    reader, writer = os.pipe()
    pages = bisect.bisect_left(range(1, _MOST_PAGES), True, key=lambda pages: not can_be_mapped(fd, offset, pages))
    with mmap.mmap(fd, pages * PAGE_BYTES, offset=offset) as mapping, memoryview(mapping) as view:
        readable = sum(is_readable(view[page * PAGE_BYTES :][:1], writer, reader) for page in range(pages))
    os.close(reader)
    os.close(writer)
    assert readable < _MOST_PAGES - 1
    return readable * PAGE_BYTES


def can_be_mapped(fd: int, offset: int, pages: int) -> bool:
    try:
        mmap.mmap(fd, pages * PAGE_BYTES, offset=offset).close()
    except OSError:
        return False
    return True


def is_readable(byte: memoryview, writer: int, reader: int) -> bool:
    """Whether the kernel can read this byte; a process that tries would be killed (SIGBUS)."""
    with byte:
        try:
            os.write(writer, byte)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            return False
    os.read(reader, 1)
    return True


def test_ftrace_buffer_has_its_size_and_goes_with_its_instance() -> None:
    with held_by_fd.ftrace_buffer() as planted:
        mounts = [line.split() for line in Path(f"/proc/{planted.pid}/mounts").read_text().splitlines()]
        (folder,) = [mount[1] for mount in mounts if mount[2] == "tracefs"]
        instances = f"{folder}/instances"
        size = inside(planted.pid, "cat", f"{instances}/{planted.instance}/buffer_total_size_kb", namespace="mount")
        # The kernel counts room for data: a page without its header of 16 bytes.
        assert int(size) << 10 == pytest.approx(planted.buffer_bytes * (1 - 16 / PAGE_BYTES), rel=0.001)
    assert "tracefs" not in Path("/proc/self/mounts").read_text()


def test_bpf_maps_have_their_size() -> None:
    with held_by_fd.bpf_maps() as planted:
        information = [Path(f"/proc/{planted.pid}/fdinfo/{fd}").read_text() for fd in planted.fds]
        assert (
            sum(field(text, "value_size") * field(text, "max_entries") for text in information) == planted.value_bytes
        )
        assert sum(field(text, "memlock") for text in information) == pytest.approx(planted.value_bytes, rel=0.01)


def field(text: str, name: str) -> int:
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1], 0)


def test_memfd_has_all_its_pages() -> None:
    with files.memfd(64 * MIB) as planted:
        found = Path(f"/proc/{planted.pid}/fd/{planted.fd}").stat()
        assert (found.st_ino, found.st_dev) == (planted.inode, planted.device)
        assert found.st_blocks * 512 == planted.size_bytes == 64 * MIB


@pytest.mark.parametrize("deleted", [False, True])
def test_a_files_pages_are_in_the_page_cache(deleted: bool) -> None:
    with files.cached_file(64 * MIB, deleted=deleted) as planted:
        path = f"/proc/{planted.pid}/fd/{planted.fd}"
        assert Path(path).stat().st_nlink == (0 if deleted else 1)
        assert Path(planted.path).exists() is not deleted
        cached = subprocess.run(
            ["fincore", "--bytes", "--noheadings", "--output", "RES", path], check=True, capture_output=True
        )
        assert int(cached.stdout) == planted.size_bytes == 64 * MIB
    assert not Path(planted.path).exists()


def test_tmpfs_mount_is_full_of_files_that_are_not_open() -> None:
    with files.tmpfs_mount(files=4, file_bytes=8 * MIB) as planted:
        root = Path(f"/proc/{planted.pid}/root{planted.mount_point}")
        usage = os.statvfs(root)
        assert (usage.f_blocks - usage.f_bfree) * usage.f_bsize == planted.size_bytes
        assert len(list(root.iterdir())) == planted.files
        assert planted.mount_point not in Path("/proc/self/mounts").read_text()
    assert not Path(planted.mount_point).exists()


def test_sysv_segment_is_attached_to_no_process() -> None:
    with files.sysv_segment(32 * MIB) as planted:
        (row,) = segments(planted.segment)
        creator, attached, resident_bytes = int(row[4]), int(row[6]), int(row[14])
        assert (creator, attached, resident_bytes) == (planted.creator_pid, 0, planted.size_bytes)
    assert segments(planted.segment) == []


def segments(segment: int) -> list[list[str]]:
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return [row for row in rows if int(row[1]) == segment]


def negative_dentries() -> int:
    """The fifth figure of man 5 proc: /proc/sys/fs/dentry-state; only those that may be reclaimed."""
    return int(Path("/proc/sys/fs/dentry-state").read_text().split()[4])


def test_negative_dentries_are_counted_and_end_with_their_folder() -> None:
    before = negative_dentries()
    with files.negative_dentries(200_000) as planted:
        assert negative_dentries() - before == pytest.approx(planted.names, rel=0.05)
    assert abs(negative_dentries() - before) < 0.05 * planted.names


def test_qdisc_backlog_is_what_tc_says() -> None:
    with packets.qdisc_backlog(sender_exits=False) as planted:
        assert Path(f"/proc/{planted.pid}/ns/net").stat().st_ino == planted.network_namespace
        shown = inside(planted.pid, "tc", "-json", "-stats", "qdisc", "show", "dev", planted.device, "root")
        (qdisc,) = json.loads(shown)
        assert (qdisc["qlen"], qdisc["backlog"], qdisc["drops"]) == (planted.packets, planted.packet_bytes, 0)
        assert planted.packets == 3_000


def test_qdisc_backlog_outlives_its_sender_in_a_zombie_namespace_and_ends_with_the_peer() -> None:
    before = active_objects("skbuff_head_cache")
    with packets.qdisc_backlog(packets=_ZOMBIE_PACKETS, payload_bytes=1_000) as planted:
        assert planted.packets == _ZOMBIE_PACKETS
        assert planted.network_namespace not in namespaces_in_use()
        # It is still there: a veth device would have ended with the namespace of its other end.
        (peer,) = json.loads(inside(planted.pid, "ip", "-json", "link", "show", "planted-peer"))
        assert "LOWER_UP" in peer["flags"]
        assert active_objects("skbuff_head_cache") - before == pytest.approx(planted.packets, rel=_OTHERS)
    end = time.monotonic() + _GONE_SECONDS
    while active_objects("skbuff_head_cache") - before > _OTHERS * planted.packets and time.monotonic() < end:
        time.sleep(0.1)
    assert active_objects("skbuff_head_cache") - before < _OTHERS * planted.packets


def namespaces_in_use() -> set[int]:
    """The network namespaces that a thread is in, that an fd refers to, or that are mounted."""
    found = set()
    for pattern in ("[0-9]*/task/[0-9]*/ns/net", "[0-9]*/fd/[0-9]*"):
        for link in Path("/proc").glob(pattern):
            with contextlib.suppress(OSError):
                found |= {int(number) for number in re.findall(r"^net:\[(\d+)\]$", str(link.readlink()))}
    for mounts in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            found |= {int(number) for number in re.findall(r" net:\[(\d+)\] ", mounts.read_text())}
    return found


class Zombies:
    """Reads which network namespaces something else than a process, an fd or a mount keeps."""

    def __init__(self, memory: KernelMemory, btf: Btf) -> None:
        self._memory, self._btf, self._at = memory, btf, fields(btf)

    def inodes(self) -> set[int]:
        found = read_namespaces(take_slab_census(self._memory, self._btf), self._at)
        assert found is not None
        # Without references, the kernel is already removing it.
        return set(found.table["inode"][is_zombie(found) & (found.table["references"] > 0)].tolist())

    def wait_for_end(self, inode: int) -> None:
        """The kernel removes namespaces one after the other: that with the other end of a device may have to wait."""
        end = time.monotonic() + _NAMESPACE_GONE_SECONDS
        while inode in self.inodes():
            assert time.monotonic() < end, "a zombie namespace is left"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def zombies(btf: Btf) -> Iterator[Zombies]:
    with opened_memory(btf) as memory:
        yield Zombies(memory, btf)


Planted = AbstractContextManager[packets.WaitingPackets | held_by_fd.TunQueue | nfqueue.QueuedPackets]
_IN_NETWORKS: list[Callable[[], Planted]] = [
    lambda: packets.qdisc_backlog(_FEW_PACKETS),
    lambda: packets.qdisc_backlog(_FEW_PACKETS, sender_exits=False),
    lambda: packets.first_fragments(_FEW_PACKETS),
    lambda: packets.neighbour_queue(_FEW_PACKETS),
    lambda: held_by_fd.tun_queue(_FEW_PACKETS),
    lambda: nfqueue.nfqueue(_FEW_PACKETS),
]
_NAMES = ["qdisc", "qdisc_with_sender", "fragments", "neighbour", "tun", "nfqueue"]


@pytest.mark.parametrize("plant", _IN_NETWORKS, ids=_NAMES)
def test_no_zombie_namespace_is_left_at_the_end(plant: Callable[[], Planted], zombies: Zombies) -> None:
    with plant() as planted:
        is_already = isinstance(planted, packets.WaitingPackets) and planted.is_zombie
        assert (planted.network_namespace in zombies.inodes()) == is_already
    zombies.wait_for_end(planted.network_namespace)


@pytest.mark.parametrize("plant", _IN_NETWORKS, ids=_NAMES)
def test_no_zombie_namespace_is_left_when_its_holder_is_killed(plant: Callable[[], Planted], zombies: Zombies) -> None:
    with pytest.raises(RuntimeError, match=f"ended with {-signal.SIGKILL}"), plant() as planted:
        os.kill(own_child(planted.pid), signal.SIGKILL)
    zombies.wait_for_end(planted.network_namespace)


def own_child(pid: int) -> int:
    """The child of this process that is the process `pid` or its parent."""
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid if parent == os.getpid() else parent


def test_first_fragments_wait_in_reassembly() -> None:
    with packets.first_fragments() as planted:
        counts = re.search(r"FRAG: inuse (\d+) memory (\d+)", Path(f"/proc/{planted.pid}/net/sockstat").read_text())
        assert counts is not None
        assert int(counts[1]) == planted.packets == 2_000
        assert int(counts[2]) > planted.packet_bytes


def test_packets_wait_for_a_neighbour() -> None:
    with packets.neighbour_queue() as planted:
        assert "INCOMPLETE" in inside(planted.pid, "ip", "neighbour", "show", "dev", planted.device)
        ((charge_bytes, _, _, _),) = udp_queues(planted.pid)
        assert charge_bytes > planted.packet_bytes
        (link,) = json.loads(inside(planted.pid, "ip", "-json", "-stats", "link", "show", planted.device))
        assert link["stats64"]["tx"]["bytes"] < planted.packet_bytes / planted.packets


def test_nfqueue_waits_for_verdicts() -> None:
    with nfqueue.nfqueue() as planted:
        (row,) = Path(f"/proc/{planted.pid}/net/netfilter/nfnetlink_queue").read_text().splitlines()
        queue, _, waiting, _, _, dropped, dropped_by_user, *_ = map(int, row.split())
        assert (queue, waiting, dropped, dropped_by_user) == (planted.queue, planted.packets, 0, 0)
        netlink = inside(planted.pid, "cat", "/proc/self/net/netlink").splitlines()[1:]
        (receive_bytes,) = [int(row.split()[4]) for row in netlink if int(row.split()[9]) == planted.inode]
        assert receive_bytes == 0


def test_sockmap_backlog_can_be_read_but_is_not_in_the_receive_queue() -> None:
    with psock.sockmap_backlog() as planted:
        shown = inside(planted.pid, "ss", "--tcp", "--no-header", "--numeric", "--memory")
        assert [line.split()[1:3] for line in shown.splitlines() if line.startswith("ESTAB")] == [["0", "0"]] * 2
        assert max(int(charge) for charge in re.findall(r"skmem:\(r(\d+)", shown)) > planted.unread_bytes
        assert read_all(planted.pid, planted.fd) == planted.unread_bytes


def test_pinned_maps_are_files_that_no_process_has_open() -> None:
    with bpf_and_xdp.pinned_maps() as planted:
        folder = Path(f"/proc/{planted.pid}/root{planted.mount_point}")
        assert len(list(folder.glob("map-*"))) == len(planted.map_ids) == 4
        assert not set(planted.map_ids) & maps_with_fds()


def maps_with_fds() -> set[int]:
    """Ids of the BPF maps that some process has an fd of."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/fdinfo/[0-9]*"):
        with contextlib.suppress(OSError):
            found |= {int(number) for number in re.findall(r"^map_id:\t(\d+)$", path.read_text(), re.MULTILINE)}
    return found


def test_xdp_rings_have_pages_for_their_entries() -> None:
    with bpf_and_xdp.xdp_rings(sockets=2) as planted:
        rings_bytes = 0
        for fd in planted.fds:
            with duplicate(planted.pid, fd) as xdp:
                rings_bytes += sum(mappable_bytes(xdp, offset) for offset in _XDP_OFFSETS)
        rings = len(planted.fds) * len(_XDP_OFFSETS)
        assert planted.ring_bytes < rings_bytes <= planted.ring_bytes + rings * PAGE_BYTES
