"""Traffic through a network driver with a page pool: a veth pair with an XDP program on the receiving end.

A child process in a separate network namespace has the receiving end, another namespace the sending one. Native XDP
makes veth copy every packet into pages of its own pool (drivers/net/veth.c, veth_convert_skb_to_xdp_buff).

with XdpReceiver() as child:
    truth = child.receive("datagrams", 1000)    # {"fd": 5, "packets": 1000, "unread_bytes": 1200000}
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from support.bpf import XDP_PASS, attach_xdp

INTERFACE = "xdp-receiver"
DATAGRAM_BYTES = 1200
_FRAGMENT_BYTES, _MORE_FRAGMENTS = 1200, 0x2000  # a multiple of 8; IP_MF of include/net/ip.h
_HERE, _THERE, _PEER, _PORT = "10.99.0.1", "10.99.0.2", "xdp-sender", 4242
_CLONE_NEWNET = 0x40000000
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SIOCINQ = 32, 33, 0x541B  # socket(7), tcp(7)
_SO_MAX_PACING_RATE, _PACED_BYTES_PER_SECOND = 47, 8 << 20
_BUFFER_BYTES = 1 << 30

Truth = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[object] = []


class XdpReceiver:
    """The child process. Everything that it holds is freed when the context ends."""

    def __init__(self) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "planted.veth_xdp"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=Path(__file__).parent.parent,
        )
        self.interface_index: int = self._answer()["interface_index"]

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def network_namespace(self) -> int:
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino

    def receive(self, load: str, amount: int) -> Truth:
        """Make it receive `amount` datagrams or bytes of a stream without reading; returns what it counted."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{load} {amount}\n")
        return self._answer()

    def inode(self, fd: int) -> int:
        """The inode of the socket behind an fd of the child."""
        return Path(f"/proc/{self.pid}/fd/{fd}").stat().st_ino

    def _answer(self) -> Truth:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"the receiving child said {line!r} and ended with {self._child.poll()}")
        answer: Truth = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()
        self._child.communicate()


def _datagrams(amount: int) -> Truth:
    """Datagrams, two to a page."""
    receiver = _receiver(socket.SOCK_DGRAM)
    sender = _sender(socket.SOCK_DGRAM)
    for _ in range(amount):
        sender.send(b"d" * DATAGRAM_BYTES)
    return {"fd": receiver.fileno(), "packets": amount, "unread_bytes": amount * DATAGRAM_BYTES}


def _paced_stream(amount: int) -> Truth:
    """Like _stream, but sent by a timer's interrupts, whether or not the CPU is busy."""
    return _stream(amount, pacing_bytes_per_second=_PACED_BYTES_PER_SECOND)


def _stream(amount: int, *, pacing_bytes_per_second: int | None = None) -> Truth:
    """Bytes of one connection."""
    listener = _receiver(socket.SOCK_STREAM)
    sender = _sender(socket.SOCK_STREAM)
    if pacing_bytes_per_second is not None:
        sender.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, pacing_bytes_per_second)
    receiver, _ = listener.accept()
    _kept.append(receiver)
    sender.sendall(b"s" * amount)
    while struct.unpack("i", fcntl.ioctl(receiver, _SIOCINQ, bytes(4)))[0] < amount:
        time.sleep(0.01)
    return {"fd": receiver.fileno(), "unread_bytes": amount}


def _fragments(amount: int) -> Truth:
    """First fragments of datagrams whose rest never arrives: they wait in the IP layer, not in a socket."""
    for name, value in {"time": 600, "high_thresh": _BUFFER_BYTES, "max_dist": 0}.items():
        Path(f"/proc/sys/net/ipv4/ipfrag_{name}").write_text(str(value))
    sender = _opened_there(socket.SOCK_RAW, socket.IPPROTO_RAW)
    addresses = socket.inet_aton(_THERE) + socket.inet_aton(_HERE)
    payload = b"f" * _FRAGMENT_BYTES
    for number in range(amount):
        header = struct.pack(">BBHHHBBH", 0x45, 0, 0, number, _MORE_FRAGMENTS, 64, socket.IPPROTO_UDP, 0) + addresses
        sender.sendto(header + payload, (_HERE, 0))
    return {"packets": amount}


def _drain(fd: int) -> Truth:
    """Read all data in the socket of an fd."""
    with socket.socket(fileno=os.dup(fd)) as receiver:
        receiver.setblocking(False)
        read = 0
        while True:
            try:
                read += len(receiver.recv(1 << 20))
            except BlockingIOError:
                return {"read_bytes": read}


def _receiver(kind: int) -> socket.socket:
    receiver = socket.socket(socket.AF_INET, kind)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    receiver.bind((_HERE, _PORT))
    if kind == socket.SOCK_STREAM:
        receiver.listen()
    _kept.append(receiver)
    return receiver


def _sender(kind: int) -> socket.socket:
    """A socket of the other namespace, connected to the receiver."""
    sender = _opened_there(kind)
    sender.connect((_HERE, _PORT))
    return sender


def _opened_there(kind: int, protocol: int = 0) -> socket.socket:
    """A socket of the other namespace."""
    _enter(_namespace_of(_there))
    try:
        sender = socket.socket(socket.AF_INET, kind, protocol)
    finally:
        _enter(_here)
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
    _kept.append(sender)
    return sender


def _namespace_of(pid: int) -> int:
    return os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)


def _enter(namespace_fd: int) -> None:
    if _libc.setns(namespace_fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def _unshare() -> None:
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")


def _ip(*words: str, namespace_of: int = 0) -> None:
    prefix = ["nsenter", f"--net=/proc/{namespace_of}/ns/net"] if namespace_of else []
    subprocess.run([*prefix, "ip", *words], check=True)


_LOADS: dict[str, Callable[[int], Truth]] = {
    "datagrams": _datagrams,
    "stream": _stream,
    "paced_stream": _paced_stream,
    "fragments": _fragments,
    "drain": _drain,
}

if __name__ == "__main__":
    _unshare()
    _here = _namespace_of(os.getpid())
    _other = subprocess.Popen(["cat"], stdin=subprocess.PIPE, preexec_fn=_unshare)  # noqa: PLW1509 - no threads here
    _there = _other.pid
    _ip("link", "add", INTERFACE, "type", "veth", "peer", "name", _PEER, "netns", str(_there))
    _ip("addr", "add", f"{_HERE}/24", "dev", INTERFACE)
    _ip("addr", "add", f"{_THERE}/24", "dev", _PEER, namespace_of=_there)
    _ip("link", "set", INTERFACE, "up")
    _ip("link", "set", _PEER, "up", namespace_of=_there)
    _index = socket.if_nametoindex(INTERFACE)
    _link = attach_xdp(_index, XDP_PASS)
    print(json.dumps({"interface_index": _index}), flush=True)
    for _line in sys.stdin:
        _load, _amount = _line.split()
        print(json.dumps(_LOADS[_load](int(_amount))), flush=True)
