"""Network namespaces with known holders: what the census says keeps each of them."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from memdiag_api.census.namespaces import NetworkNamespace
from memdiag_node.census.networks.namespace_addresses import network_namespaces
from memdiag_node.census.networks.namespaces import fields, read_namespaces
from memdiag_node.census.networks.record import namespaces_record
from memdiag_node.census.networks.sockets import read_sockets, referred_to
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.scanner import SocketScanner
from planted.network_namespaces import network_namespace, zombie
from planted.sockets.network import enter_own_network
from planted.sockets.planter import Planter
from support.network_namespaces import processes_in
from support.slab_census import take_slab_census
from support.sockets import holder_of

GONE_SECONDS = 60


@pytest.fixture(scope="module")
def at(btf: Btf) -> dict[str, int]:
    return fields(btf)


class Observer:
    """Reads the network namespaces of this machine."""

    def __init__(self, scanner: SocketScanner, btf: Btf, at: dict[str, int]) -> None:
        self._at = at
        self.census = take_slab_census(scanner.source.memory, btf)

    def raw(self, inode: int) -> dict[str, int]:
        found = read_namespaces(self.census, self._at)
        assert found is not None
        (row,) = found.table[found.table["inode"] == inode]
        return {name: int(row[name]) for name in ("references", "counted_references")}

    def look(self, inode: int) -> NetworkNamespace:
        """The record of one namespace, which must be listed once."""
        found = read_namespaces(self.census, self._at)
        assert found is not None
        others = found.table["inode"] != inode
        found.table["size_bytes"][others] = 0  # so that it is among those that are listed
        (one,) = [one for one in namespaces_record(found).listed if one.inode == inode]
        return one

    def exists(self, inode: int) -> bool:
        networks = network_namespaces(self.census, self._at)
        return bool(np.isin(inode, self.census.read(networks, self._at["NET_INODE"], 4)))

    def wait_for_end(self, inode: int) -> None:
        end = time.monotonic() + GONE_SECONDS
        while self.exists(inode):
            assert time.monotonic() < end, "the planted namespace did not end"
            time.sleep(0.1)


@pytest.fixture
def observe(scanner: SocketScanner, btf: Btf, at: dict[str, int]) -> Callable[[], Observer]:
    """Takes a census when it is called: after something was planted."""
    return lambda: Observer(scanner, btf, at)


def test_namespaces_with_processes(observe: Callable[[], Observer], planter: Planter) -> None:
    truth = planter.plant("udp_small", 5_000)
    planter.plant("shared_socket", 1)  # starts a second process
    inode = planter.network_namespace()
    observer = observe()
    seen = observer.look(inode)
    assert (seen.processes, seen.is_zombie, seen.device_names) == (processes_in(inode), False, ["lo"])
    assert seen.kept_by == f"{seen.processes} processes"
    assert seen.size_bytes >= truth["unread_bytes"]
    row = observer.raw(inode)
    assert row["references"] == row["counted_references"], "every reference has a known holder"
    own = observer.look(network_namespace())
    assert own.processes >= 1
    assert not own.is_zombie


def test_every_namespace_of_a_process_is_found_once(observe: Callable[[], Observer]) -> None:
    with ExitStack() as kept:
        inodes = [kept.enter_context(Planter()).network_namespace() for _ in range(5)]
        observer = observe()
        for inode in inodes:
            assert observer.look(inode).kept_by == "1 process"


def test_a_namespace_that_only_an_fd_refers_to_is_not_a_zombie(observe: Callable[[], Observer]) -> None:
    with Planter() as planter:
        inode = planter.network_namespace()
        fd = os.open(f"/proc/{planter.pid}/ns/net", os.O_RDONLY)
    try:
        observer = observe()
        seen = observer.look(inode)
    finally:
        os.close(fd)
    assert (seen.processes, seen.files, seen.mounts, seen.is_zombie) == (0, 1, 0, False)
    assert seen.kept_by == "1 open file of it"
    observer.wait_for_end(inode)


def test_a_mounted_namespace_is_not_a_zombie(observe: Callable[[], Observer], tmp_path: Path) -> None:
    """The mount is in a mount namespace of its own, and ends with it."""
    place = tmp_path / "net"
    place.touch()
    with Planter() as planter:
        inode = planter.network_namespace()
        script = 'mount --bind "/proc/$1/ns/net" "$2" && echo mounted && exec sleep 1000'
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(planter.pid), str(place)]
        holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mounted\n"
    with holder:
        try:
            observer = observe()
            seen = observer.look(inode)
        finally:
            holder.kill()
    assert (seen.processes, seen.files, seen.mounts, seen.is_zombie) == (0, 0, 1, False)
    assert seen.kept_by == "1 mount of it"
    observer.wait_for_end(inode)


def test_sockets_in_flight_keep_a_namespace_without_a_process(
    observe: Callable[[], Observer], scanner: SocketScanner, at: dict[str, int]
) -> None:
    """A child opens a raw socket in a namespace of its own, sends it here, and exits. It is never received."""
    receiver, sender = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with receiver, sender:
        pid = os.fork()
        if not pid:
            _send_socket(sender)
        os.waitpid(pid, 0)
        inode, raw_inode, waiting_bytes = map(int, receiver.recv(64).split())
        observer = observe()
        seen = observer.look(inode)
        found = referred_to(read_sockets(observer.census, at))
        holder = holder_of(scanner.scan(found, extra_is_whole=True), raw_inode)
    assert (seen.processes, seen.files, seen.open_sockets, seen.is_zombie) == (0, 0, 1, False)
    assert seen.kept_by == "1 open socket"
    assert holder.unread_bytes == waiting_bytes
    assert holder.unowned_reason.startswith("in flight")
    assert [owner.pid for owner in holder.owners] == [os.getpid()]
    observer.wait_for_end(inode)


def _send_socket(sender: socket.socket) -> None:
    try:
        enter_own_network()
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"x" * 100, ("127.0.0.1", 9))
        waiting_bytes = len(raw.recv(4096, socket.MSG_PEEK))
        sender.send(f"{network_namespace()} {os.fstat(raw.fileno()).st_ino} {waiting_bytes}".encode())
        socket.send_fds(sender, [b"take it"], [raw.fileno()])
    finally:
        os._exit(0)


def test_a_closed_connection_keeps_a_zombie(observe: Callable[[], Observer]) -> None:
    with zombie("tcp") as truth:
        observer = observe()
        seen, row = observer.look(truth["inode"]), observer.raw(truth["inode"])
    assert seen.is_zombie
    assert seen.kept_by == "1 socket that no process has (1 TCP in FIN-WAIT-1)"
    assert (row["references"], row["counted_references"]) == (1, 1)
    assert seen.size_bytes >= truth["unsent_bytes"] > 0
    assert (seen.devices, seen.device_names) == (2, ["lo", "planted1"])
    observer.wait_for_end(truth["inode"])


def test_packets_of_a_closed_socket_keep_a_zombie(observe: Callable[[], Observer]) -> None:
    with zombie("packets") as truth:
        observer = observe()
        seen = observer.look(truth["inode"])
    assert seen.is_zombie
    assert seen.kept_by == "1 socket that no process has (1 UDP closed with packets that still wait)"
    assert seen.packets == truth["packets"] > 0
    assert seen.size_bytes >= truth["packet_bytes"]
    assert seen.processes == seen.files == seen.mounts == seen.open_sockets == 0
    observer.wait_for_end(truth["inode"])
