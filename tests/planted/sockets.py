"""Socket queues of known content, planted by a child process in a network namespace of its own.

with Planter() as child:
    truth = child.plant("tcp_small_messages", 1000)   # {"fd": 5, "unread_bytes": 64000}: as the child counted

By hand: python3 tests/planted/sockets.py tcp_small_messages 1000, which stays until its stdin ends.
"""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PAGE_BYTES = mmap.PAGESIZE
MIB = 1 << 20
TCP_HEADER_BYTES = 32  # with timestamps
LOOPBACK: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 1
_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_TCP_RECV_QUEUE, _TCP_SEND_QUEUE = 1, 2
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_F_SETPIPE_SZ = 1031
_UDPLITE, _MPTCP = 136, 262
_SO_TIMESTAMPING, _SO_ZEROCOPY, _MSG_ZEROCOPY = 37, 60, 0x4000000
_TIMESTAMPS_OF_SENT = 1 << 1 | 1 << 4  # include/uapi/linux/net_tstamp.h: SOF_TIMESTAMPING_TX_SOFTWARE, _SOFTWARE
_SOL_PACKET, _PACKET_RX_RING, _PACKET_TX_RING = 263, 5, 13
_IORING_REGISTER_FILES = 2
_VMADDR_CID_LOCAL = 1
_TAP = "tap0"
_ETHERNET_BYTES, _IPV4_BYTES, _UDP_BYTES = 14, 20, 8
_PR_SET_PDEATHSIG = 1

Truth = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[object] = []


class Planter:
    """A child process that plants what it is told. Everything that it holds goes with it, on leaving the context."""

    def __init__(self, *, own_network: bool = True) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__, "--serve", "own" if own_network else "shared"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,  # so that its own children end with it
        )
        self._answer()

    @property
    def pid(self) -> int:
        return self._child.pid

    def plant(self, load: str, *amounts: int) -> Truth:
        """Have the child plant a load; returns what it counted."""
        assert self._child.stdin is not None
        self._child.stdin.write(" ".join([load, *map(str, amounts)]) + "\n")
        return self._answer()

    def become_user(self, uid: int) -> None:
        """Let the child go on as another user, who may plant nothing more that needs root."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"become_user {uid}\n")
        self._answer()

    def inode(self, fd: int) -> int:
        """The inode of the socket (or pipe) behind an fd of the child."""
        return Path(f"/proc/{self.pid}/fd/{fd}").stat().st_ino

    def network_namespace(self) -> int:
        return Path(f"/proc/{self.pid}/ns/net").stat().st_ino

    def kill(self) -> None:
        """End it with everything that it holds. Idempotent."""
        if self._child.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._child.wait()

    def _answer(self) -> Truth:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(f"the planting child said {line!r} and ended with {self._child.poll()}")
        answer: Truth = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self.kill()
        self._child.stdin.close()
        self._child.stdout.close()


def _keep(*things: Any) -> None:
    _kept.extend(things)


def enter_own_network() -> None:
    """A network namespace of our own, with nothing but a loopback that is up."""
    if _libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    set_loopback(up=True)


def set_loopback(*, up: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[0]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def set_loopback_mtu(mtu_bytes: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", b"lo", mtu_bytes))


def inq(sock: socket.socket) -> int:
    """What the kernel says is readable: for TCP and UNIX streams all of it, for datagrams the first."""
    return int(struct.unpack("i", fcntl.ioctl(sock, _SIOCINQ, b"\0" * 4))[0])


def outq(sock: socket.socket) -> int:
    """Bytes of a TCP socket that the peer has not acknowledged."""
    return int(struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQ, b"\0" * 4))[0])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not come about in {seconds} s")
        time.sleep(0.01)


def tcp_pair(
    family: int = socket.AF_INET, *, receive_bytes: int = 256 * MIB, send_bytes: int = 64 * MIB
) -> tuple[socket.socket, socket.socket]:
    """A connection: the sender's end and the receiver's end."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
    listener.bind((LOOPBACK[family], 0))
    listener.listen(5)
    sender = socket.socket(family, socket.SOCK_STREAM)
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, send_bytes)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    listener.close()
    _keep(sender, receiver)
    return sender, receiver


def udp_pair(family: int = socket.AF_INET, protocol: int = 0) -> tuple[socket.socket, socket.socket]:
    receiver = socket.socket(family, socket.SOCK_DGRAM, protocol)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 512 * MIB)
    receiver.bind((LOOPBACK[family], 0))
    sender = socket.socket(family, socket.SOCK_DGRAM, protocol)
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 64 * MIB)
    sender.connect(receiver.getsockname())
    _keep(sender, receiver)
    return sender, receiver


def _tcp(family: int, amount: int) -> Truth:
    sender, receiver = tcp_pair(family)
    sender.sendall(b"x" * amount)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    host, port = receiver.getsockname()[:2]
    remote = receiver.getpeername()[1]
    return {
        "fd": receiver.fileno(),
        "unread_bytes": amount,
        "port": port,
        "remote_port": remote,
        "host": host,
    }


def tcp_bulk(amount: int) -> Truth:
    return _tcp(socket.AF_INET, amount)


def tcp6_bulk(amount: int) -> Truth:
    return _tcp(socket.AF_INET6, amount)


def tcp_small_messages(amount: int) -> Truth:
    """Messages of 64 bytes, each followed by bulk on another connection that is read at once.

    Both come out of the sending task's page fragment, so each message lies in a 32 KiB block that only it keeps.
    """
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    healthy_sender, healthy_receiver = tcp_pair()
    bulk = b"b" * 32768
    for _ in range(amount):
        sender.send(b"a" * 64)
        healthy_sender.sendall(bulk)
        left = len(bulk)
        while left:
            left -= len(healthy_receiver.recv(left))
    wait_for(lambda: inq(receiver) == 64 * amount, "the messages' arrival")
    return {
        "fd": receiver.fileno(),
        "unread_bytes": 64 * amount,
        "pinned_bytes": 32768 * amount,
        "healthy_fd": healthy_receiver.fileno(),
    }


def tcp_partly_read(amount: int) -> Truth:
    sender, receiver = tcp_pair()
    sender.sendall(b"x" * amount)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    taken = len(receiver.recv(amount // 3, socket.MSG_WAITALL))
    return {"fd": receiver.fileno(), "unread_bytes": amount - taken}


def mptcp_partly_read(amount: int) -> Truth:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
    listener.bind((LOOPBACK[socket.AF_INET], 0))
    listener.listen(5)
    sender = socket.socket(socket.AF_INET, socket.SOCK_STREAM, _MPTCP)
    sender.connect(listener.getsockname())
    receiver, _ = listener.accept()
    sender.sendall(b"x" * amount)
    wait_for(lambda: len(receiver.recv(amount, socket.MSG_PEEK)) == amount, "the bytes' arrival")
    taken = len(receiver.recv(amount // 3, socket.MSG_WAITALL))
    _keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount - taken}


def tcp_finished(amount: int) -> Truth:
    """The peer has sent all and closed: its FIN is no byte that anyone could read."""
    sender, receiver = tcp_pair()
    sender.sendall(b"x" * amount)
    sender.shutdown(socket.SHUT_WR)
    wait_for(lambda: inq(receiver) == amount, "the bytes' arrival")
    time.sleep(0.05)
    return {"fd": receiver.fileno(), "unread_bytes": amount}


def tcp_read_on(amount: int) -> Truth:
    """Read `amount` bytes of the last connection."""
    receiver = _kept[-1]
    assert isinstance(receiver, socket.socket)
    return {"fd": receiver.fileno(), "read_bytes": len(receiver.recv(amount))}


def tcp_unaccepted(amount: int) -> Truth:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    listener.listen(5)
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"q" * amount)
    wait_for(lambda: outq(client) == 0, "the acknowledgement")
    _keep(listener, client)
    return {"fd": listener.fileno(), "port": client.getpeername()[1], "remote_port": client.getsockname()[1]}


def tcp_write_queue(amount: int) -> Truth:
    return _tcp_write_queue(socket.AF_INET, amount)


def tcp6_write_queue(amount: int) -> Truth:
    return _tcp_write_queue(socket.AF_INET6, amount)


def _tcp_write_queue(family: int, amount: int) -> Truth:
    """More than the receiver takes: the rest waits at the sender."""
    sender, receiver = tcp_pair(family, receive_bytes=16384, send_bytes=64 * MIB)
    sender.setblocking(False)
    sent = 0
    while sent < amount:
        sent += sender.send(b"w" * min(65536, amount - sent))
    time.sleep(0.2)
    return {"fd": sender.fileno(), "unsent_bytes": outq(sender), "receiver_fd": receiver.fileno()}


def tcp_retransmit(amount: int) -> Truth:
    """The way to the receiver is gone: what was sent waits to be sent again."""
    sender, _ = tcp_pair()
    set_loopback(up=False)
    sender.setblocking(False)
    sent = sender.send(b"r" * amount)
    return {"fd": sender.fileno(), "unsent_bytes": sent}


def tcp_zerocopy(amount: int) -> Truth:
    """`amount` pages of this process that are sent without being copied, and the way to the receiver is gone."""
    sender, _ = tcp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    pages = mmap.mmap(-1, amount * PAGE_BYTES)
    for page in range(amount):
        pages[page * PAGE_BYTES] = 1
    set_loopback(up=False)
    sent = sender.send(pages, _MSG_ZEROCOPY)
    _keep(pages)
    return {"fd": sender.fileno(), "unsent_bytes": sent, "user_bytes": amount * PAGE_BYTES}


def tcp_zerocopy_done(amount: int) -> Truth:
    """`amount` sends without a copy that went through: the kernel's word that the pages are free waits to be read."""
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    for _ in range(amount):
        sender.send(bytes(PAGE_BYTES), _MSG_ZEROCOPY)
        receiver.recv(PAGE_BYTES, socket.MSG_WAITALL)
    wait_for(lambda: outq(sender) == 0, "the acknowledgement")
    return {"fd": sender.fileno()}


def tcp_orphan(amount: int) -> Truth:
    """Closed with data that the peer never took: no process holds it any more."""
    sender, receiver = tcp_pair(receive_bytes=16384)
    sender.setblocking(False)
    sent = sender.send(b"o" * amount)
    time.sleep(0.2)
    waiting, inode = outq(sender), os.fstat(sender.fileno()).st_ino
    port = sender.getsockname()[1]
    sender.close()
    return {"sent_bytes": sent, "unsent_bytes": waiting, "inode": inode, "port": port, "receiver_fd": receiver.fileno()}


def _checksum(data: bytes) -> int:
    total = sum(int(word) for word in struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _sequence(sock: socket.socket, queue: int) -> int:
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
    number: int = sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ)
    sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, -1)  # TCP_REPAIR_OFF_NO_WP: without a window probe
    return number & 0xFFFFFFFF


def tcp_out_of_order(amount: int) -> Truth:
    """`amount` segments of 100 bytes, none next to another, made by hand."""
    sender, receiver = tcp_pair()
    sender.sendall(b"h" * 100)
    wait_for(lambda: inq(receiver) == 100, "the bytes' arrival")
    expected, acknowledged = _sequence(receiver, _TCP_RECV_QUEUE), _sequence(receiver, _TCP_SEND_QUEUE)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    here = socket.inet_aton("127.0.0.1")
    ports = sender.getsockname()[1], receiver.getsockname()[1]
    payload = b"o" * 100
    for number in range(amount):
        sequence = (expected + 1000 + number * 200) & 0xFFFFFFFF
        header = struct.pack(">HHIIBBHHH", *ports, sequence, acknowledged, 0x50, 0x10, 512, 0, 0)
        pseudo = here * 2 + struct.pack(">HH", 6, len(header) + len(payload))
        checksum = struct.pack(">H", _checksum(pseudo + header + payload))
        segment = header[:16] + checksum + header[18:] + payload
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), number, 0, 64, 6, 0, here, here)
        raw.sendto(ip + segment, ("127.0.0.1", 0))
    _keep(raw)
    return {"fd": receiver.fileno(), "unread_bytes": 100, "out_of_order_packets": amount}


class _UffdApi(ctypes.Structure):
    _fields_ = (("api", ctypes.c_uint64), ("features", ctypes.c_uint64), ("ioctls", ctypes.c_uint64))


class _UffdRegister(ctypes.Structure):
    _fields_ = (
        ("start", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("ioctls", ctypes.c_uint64),
    )


def tcp_backlog(amount: int) -> Truth:
    """`amount` packets for a receiver whose thread sleeps in a page fault, holding the socket's lock."""
    sender, receiver = tcp_pair()
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sender.sendall(b"h" * 100)
    wait_for(lambda: inq(receiver) == 100, "the bytes' arrival")
    userfault = _libc.syscall(323, os.O_CLOEXEC)  # x86-64
    if userfault < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(userfault, 0xC018AA3F, _UffdApi(0xAA, 0, 0))
    area = mmap.mmap(-1, PAGE_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    fcntl.ioctl(userfault, 0xC020AA00, _UffdRegister(address, PAGE_BYTES, 1, 0))
    thread = threading.Thread(
        target=_libc.recv, args=(receiver.fileno(), ctypes.c_void_p(address), 100, 0), daemon=True
    )
    thread.start()
    select.select([userfault], [], [], 10)  # the fault has happened: the thread goes to sleep with the lock
    time.sleep(0.2)
    for _ in range(amount):
        sender.send(b"b" * 1000)
    _keep(area, thread)
    return {"fd": receiver.fileno(), "backlog_packets": amount}


def udp_small(amount: int) -> Truth:
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"y" * 200)
    return {"fd": receiver.fileno(), "unread_bytes": 200 * amount, "packets": amount}


def udp6_large(amount: int) -> Truth:
    sender, receiver = udp_pair(socket.AF_INET6)
    for _ in range(amount):
        sender.send(b"y" * 32000)
    return {"fd": receiver.fileno(), "unread_bytes": 32000 * amount, "packets": amount}


def udp_reader_queue(amount: int) -> Truth:
    """Reading one moves all that wait into the reader's queue; as many come after."""
    sender, receiver = udp_pair()
    for _ in range(amount + 1):
        sender.send(b"r" * 500)
    receiver.recv(600)
    for _ in range(amount):
        sender.send(b"r" * 500)
    return {"fd": receiver.fileno(), "unread_bytes": 1000 * amount, "packets": 2 * amount, "reader_packets": amount}


def udp_fragmented(amount: int) -> Truth:
    """Datagrams larger than the MTU: put together from fragments, they are packets with a list of packets."""
    set_loopback_mtu(8020)
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"f" * 24000)
    return {"fd": receiver.fileno(), "unread_bytes": 24000 * amount, "packets": amount}


def udp_error_queue(amount: int) -> Truth:
    """The sender asks when each datagram was sent: a copy of it, with all headers, waits with the answer."""
    sender, _ = udp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _TIMESTAMPS_OF_SENT)
    for _ in range(amount):
        sender.send(b"e" * 200)
    return {"fd": sender.fileno(), "bytes": amount * (_ETHERNET_BYTES + _IPV4_BYTES + _UDP_BYTES + 200)}


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _ethernet(destination: bytes, ip: bytes) -> bytes:
    return destination + b"\x02memdi" + b"\x08\x00" + ip


def _ipv4(
    source: str, destination: str, payload: bytes, *, number: int = 0, offset: int = 0, more: bool = False
) -> bytes:
    """A UDP packet, or a fragment of one."""
    flags = offset // 8 | (0x2000 if more else 0)
    header = struct.pack(">BBHHHBBH", 0x45, 0, _IPV4_BYTES + len(payload), number, flags, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton(source) + socket.inet_aton(destination)
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + payload


def udp_nested_fragments(amount: int) -> Truth:
    """Fragments of datagrams, each in a VXLAN packet that came in fragments itself: packet lists in packet lists."""
    _ip("link", "add", "vx0", "type", "vxlan", "id", "7", "local", "127.0.0.1", "dstport", "4789", "dev", "lo")
    _ip("address", "add", "10.99.0.1/24", "dev", "vx0")
    _ip("link", "set", "vx0", "up")
    address = bytes.fromhex(_mac("vx0"))
    set_loopback_mtu(4000)
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    receiver.bind(("10.99.0.1", 0))
    tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    payload = 24_000
    for number in range(amount):
        port = receiver.getsockname()[1]
        datagram = struct.pack(">HHHH", 9, port, _UDP_BYTES + payload, 0) + b"n" * payload
        for offset in range(0, len(datagram), 8_000):
            part, more = datagram[offset : offset + 8_000], offset + 8_000 < len(datagram)
            inner = _ipv4("10.99.0.2", "10.99.0.1", part, number=number + 1, offset=offset, more=more)
            vxlan = struct.pack(">II", 0x08000000, 7 << 8)
            tunnel.sendto(vxlan + _ethernet(address, inner), ("127.0.0.1", 4789))
    _keep(receiver, tunnel)
    return {"fd": receiver.fileno(), "unread_bytes": amount * payload, "packets": amount}


def udp_head_fragments(amount: int) -> Truth:
    """Frames written to a TAP device: their heads are cut from a page fragment.

    Of all that comes out of one 32 KiB block only one datagram has a receiver, so each keeps a block of its own.
    """
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)  # else the kernel copies into a slab head
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", _TAP.encode(), 0x1002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
    _ip("address", "add", "10.98.0.1/24", "dev", _TAP)
    _ip("link", "set", _TAP, "up")
    address = bytes.fromhex(_mac(_TAP))
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    receiver.bind(("10.98.0.1", 0))
    port = receiver.getsockname()[1]
    for number in range(amount):
        for to in (port, *[9] * 31):  # about 1.5 KiB each, with the room that the kernel adds
            datagram = struct.pack(">HHHH", 9, to, _UDP_BYTES + 1_000, 0) + b"h" * 1_000
            os.write(tap, _ethernet(address, _ipv4("10.98.0.2", "10.98.0.1", datagram, number=number)))
    _keep(receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount * 1_000, "packets": amount}


def _mac(interface: str) -> str:
    found: str = json.loads(_ip("-json", "link", "show", interface))[0]["address"]
    return found.replace(":", "")


def udp_lite(amount: int) -> Truth:
    return _udp_lite(socket.AF_INET, amount)


def udp6_lite(amount: int) -> Truth:
    return _udp_lite(socket.AF_INET6, amount)


def _udp_lite(family: int, amount: int) -> Truth:
    sender, receiver = udp_pair(family, protocol=_UDPLITE)
    for _ in range(amount):
        sender.send(b"l" * 300)
    return {"fd": receiver.fileno(), "unread_bytes": 300 * amount, "packets": amount}


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def udp_spliced(amount: int) -> Truth:
    """Datagrams of 16 fragments, each 64 bytes of another page of this process."""
    sender, receiver = udp_pair()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, _F_SETPIPE_SZ, MIB)
    pages = mmap.mmap(-1, 16 * amount * PAGE_BYTES)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for page in range(16 * amount):
        pages[page * PAGE_BYTES] = 1
    vector = (_Iovec * 16)()
    for datagram in range(amount):
        for part in range(16):
            vector[part] = _Iovec(base + (16 * datagram + part) * PAGE_BYTES, 64)
        if _libc.vmsplice(write_end, vector, ctypes.c_ulong(16), 0) != 1024:
            raise OSError(ctypes.get_errno(), "vmsplice")
        if _libc.splice(read_end, None, sender.fileno(), None, ctypes.c_size_t(1024), 0) != 1024:
            raise OSError(ctypes.get_errno(), "splice")
    _keep(pages)
    return {"fd": receiver.fileno(), "unread_bytes": 1024 * amount, "user_bytes": 16 * amount * PAGE_BYTES}


def udp_spliced_pipe_pages(amount: int) -> Truth:
    """`amount` datagrams, each of one page that was written into a pipe: the kernel's own memory, moved."""
    sender, receiver = udp_pair()
    read_end, write_end = os.pipe()
    for _ in range(amount):
        os.write(write_end, b"p" * 1000)
        if _libc.splice(read_end, None, sender.fileno(), None, ctypes.c_size_t(1000), 0) != 1000:
            raise OSError(ctypes.get_errno(), "splice")
    return {"fd": receiver.fileno(), "unread_bytes": 1000 * amount, "pinned_bytes": amount * PAGE_BYTES}


def _unix(kind: int, amount: int) -> Truth:
    sender, receiver = socket.socketpair(socket.AF_UNIX, kind)
    sender.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 256 * MIB)
    sender.setblocking(False)
    sent = sum(sender.send(b"z" * 30000) for _ in range(amount))
    _keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": sent, "sender_fd": sender.fileno()}


def unix_stream(amount: int) -> Truth:
    return _unix(socket.SOCK_STREAM, amount)


def unix_seqpacket(amount: int) -> Truth:
    return _unix(socket.SOCK_SEQPACKET, amount)


def unix_datagram(amount: int) -> Truth:
    """To a bound socket, by `amount` connected senders (one alone may queue only a few)."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind("\0memdiag planted datagrams")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    for _ in range(amount):
        sender.sendto(b"d" * 3000, "\0memdiag planted datagrams")
    _keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": 3000 * amount, "packets": amount}


def unix_partly_read(amount: int) -> Truth:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    sender.send(b"z" * amount)
    receiver.recv(amount // 3)
    _keep(sender, receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount - amount // 3}


def unix_unaccepted(amount: int) -> Truth:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind("\0memdiag planted listener")
    listener.listen(5)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.connect("\0memdiag planted listener")
    client.sendall(b"u" * amount)
    _keep(listener, client)
    return {"fd": listener.fileno(), "unread_bytes": amount}


def unix_in_flight(amount: int) -> Truth:
    """A UDP socket with unread datagrams, sent over a UNIX socket, its fds closed."""
    _, receiver = udp_pair()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(amount):
        sender.sendto(b"y" * 32000, receiver.getsockname())
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    port, inode = receiver.getsockname()[1], os.fstat(receiver.fileno()).st_ino
    socket.send_fds(a, [b"!"], [receiver.fileno()])
    receiver.close()
    _keep(a, b, sender)
    return {"carrier_fd": b.fileno(), "unread_bytes": 32000 * amount, "port": port, "inode": inode}


def shared_socket(amount: int) -> Truth:
    """One UNIX socket under three fds, two of them in this process, one in a child of it."""
    truth = _unix(socket.SOCK_STREAM, amount)
    again = os.dup(truth["fd"])
    child = subprocess.Popen(["sleep", "infinity"], pass_fds=[again])
    _keep(child)
    return truth | {"fds": sorted([truth["fd"], again]), "child_pid": child.pid, "child_fd": again}


def raw_icmp(amount: int) -> Truth:
    receiver = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(amount):
        body = struct.pack(">BBHHH", 19, 0, 0, 1, number) + b"i" * 92  # a reserved type: nothing answers
        body = body[:2] + struct.pack(">H", _checksum(body)) + body[4:]
        sender.sendto(body, ("127.0.0.1", 0))
    _keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": (20 + 100) * amount, "packets": amount}


def raw6_icmp(amount: int) -> Truth:
    """Without the IPv6 header, which a raw socket does not get."""
    receiver = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    receiver.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    sender = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for number in range(amount):
        sender.sendto(struct.pack(">BBHHH", 200, 0, 0, 1, number) + b"i" * 92, ("::1", 0))  # for experiments: no answer
    _keep(receiver, sender)
    return {"fd": receiver.fileno(), "unread_bytes": 100 * amount, "packets": amount}


def raw_udp(amount: int) -> Truth:
    """A raw socket that sees the datagrams of others, with their headers."""
    tap = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    truth = udp_small(amount)
    _keep(tap)
    each = _IPV4_BYTES + _UDP_BYTES + 200
    return {"fd": tap.fileno(), "unread_bytes": amount * each, "packets": truth["packets"]}


def raw_tcp(amount: int) -> Truth:
    """Two raw sockets that see the segments of others; one is read, to know what the other has."""
    taps = [socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) for _ in range(2)]
    for tap in taps:
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    tcp_bulk(amount)
    time.sleep(0.2)  # a delayed acknowledgement
    _keep(*taps)
    return {"fd": taps[0].fileno(), **_drained(taps[1])}


def _drained(sock: socket.socket) -> Truth:
    """How much waited in a socket of packets: all of it is read."""
    sizes = []
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sizes.append(len(sock.recv(MIB)))
    return {"unread_bytes": sum(sizes), "packets": len(sizes)}


def packet_socket(amount: int) -> Truth:
    """A tap on IPv4 frames that arrive at the loopback, and datagrams of 32,000 bytes for it to see.

    Tap and receiver get clones of one packet: what one keeps the other keeps too.
    """
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
    tap.bind(("lo", 0x0800))
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"t" * 32000)
    _keep(tap)
    frame = 14 + 20 + 8 + 32000
    return {"fd": tap.fileno(), "unread_bytes": amount * frame, "packets": amount, "udp_fd": receiver.fileno()}


def packet_ring(amount: int) -> Truth:
    """A receive ring of half of `amount` blocks of 64 KiB, and a transmit ring of the other half."""
    ring = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    for kind in (_PACKET_RX_RING, _PACKET_TX_RING):
        ring.setsockopt(_SOL_PACKET, kind, struct.pack("IIII", 65536, amount // 2, 2048, amount * 16))
    area = mmap.mmap(ring.fileno(), amount * 65536)
    _keep(ring, area)
    return {"fd": ring.fileno(), "pinned_bytes": amount * 65536}


def netlink_messages(amount: int) -> Truth:
    """A listener to changes of links that does not read, one that does, and `amount` changes of the loopback's MTU."""
    listeners = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for _ in range(2)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 * MIB)
        listener.bind((0, 1))  # RTMGRP_LINK
    for number in range(amount):
        set_loopback_mtu(60000 + number % 1000)
    _keep(*listeners)
    return {"fd": listeners[0].fileno(), **_drained(listeners[1])}


def register_fd(fd: int) -> Truth:
    """Give a planted socket to io_uring and close its fd: no process has it as an fd, and it stays open."""
    ring = _libc.syscall(425, 1, ctypes.create_string_buffer(120))  # io_uring_setup, struct io_uring_params
    if ring < 0 or _libc.syscall(427, ring, _IORING_REGISTER_FILES, ctypes.byref(ctypes.c_int(fd)), 1):
        raise OSError(ctypes.get_errno(), "io_uring")
    inode = os.fstat(fd).st_ino
    next(thing for thing in _kept if isinstance(thing, socket.socket) and thing.fileno() == fd).close()
    return {"inode": inode}


def vsock(amount: int) -> Truth:
    """`amount` bytes that nobody reads, where the kernel has a way from one vsock socket of the machine to another."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen(1)
    port = listener.getsockname()[1]
    _keep(listener)
    if " vsock_loopback_send_pkt" not in Path("/proc/kallsyms").read_text():
        return {"fd": listener.fileno(), "port": port, "unread_bytes": 0}
    sender = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sender.connect((_VMADDR_CID_LOCAL, port))
    receiver, _ = listener.accept()
    sender.sendall(b"v" * amount)
    _keep(sender, receiver)
    return {"fd": receiver.fileno(), "port": port, "unread_bytes": amount}


def _lone(pair: tuple[socket.socket, socket.socket], size: int) -> Truth:
    sender, receiver = pair
    sender.send(b"1" * size)
    _keep(sender, receiver)
    return {"fd": receiver.fileno(), "sender_fd": sender.fileno(), "unread_bytes": size}


def udp_lone(size: int) -> Truth:
    return _lone(udp_pair(), size)


def udp6_lone(size: int) -> Truth:
    return _lone(udp_pair(socket.AF_INET6), size)


def unix_lone(size: int) -> Truth:
    return _lone(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), size)


def unix_lone_seqpacket(size: int) -> Truth:
    return _lone(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET), size)


def read_and_refill(fd: int, sender_fd: int, size: int) -> Truth:
    """Read the only packet, then send another like it."""
    read = os.read(fd, size)
    os.write(sender_fd, b"1" * size)
    return {"read_bytes": len(read)}


def read_nothing(fd: int) -> Truth:
    """Ask for the only packet without taking it, and of an empty socket for what it has not."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        return {"peeked_bytes": len(sock.recv(MIB, socket.MSG_PEEK))}


def read_fd(fd: int, size: int) -> Truth:
    """Read once, of a socket of datagrams the first one; nothing when nothing is there."""
    ready, _, _ = select.select([fd], [], [], 0)
    return {"read_bytes": len(os.read(fd, size)) if ready else 0}


def pipe(amount: int) -> Truth:
    """`amount` pages written into a pipe."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, _F_SETPIPE_SZ, max(65536, amount * PAGE_BYTES))
    written = os.write(write_end, b"p" * (amount * PAGE_BYTES))
    return {"fds": [read_end, write_end], "unread_bytes": written, "pinned_bytes": amount * PAGE_BYTES}


def pipe_from_last_socket(amount: int) -> Truth:
    """Splice up to `amount` bytes out of the last connection's receiver into a pipe."""
    receiver = _kept[-1]
    assert isinstance(receiver, socket.socket)
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, _F_SETPIPE_SZ, MIB)
    moved = 0
    while moved < amount:
        part = _libc.splice(receiver.fileno(), None, write_end, None, ctypes.c_size_t(amount - moved), 2)
        if part <= 0:
            break
        moved += part
    return {"fds": [read_end, write_end], "unread_bytes": moved}


def many_udp(amount: int) -> Truth:
    """`amount` sockets, each with two datagrams of 100 bytes that it sent to itself, in several processes."""
    each = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    for start in range(0, amount, each):
        ready, done = os.pipe()
        if not os.fork():
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in range(start, min(start + each, amount)):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((f"127.0.{1 + number // 20_000}.1", 20_000 + number % 20_000))
                sock.connect(sock.getsockname())
                sock.send(b"m" * 100)
                sock.send(b"m" * 100)
                _keep(sock)
            os.write(done, b"!")
            signal.pause()
        os.close(done)
        os.read(ready, 1)
    return {"sockets": amount, "packets": 2 * amount, "unread_bytes": 200 * amount}


def become_user(uid: int) -> Truth:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return {}


_LOADS: dict[str, Callable[..., Truth]] = {
    name: thing
    for name, thing in list(globals().items())
    if callable(thing) and name.split("_")[0].rstrip("6") in
    ("tcp", "mptcp", "udp", "unix", "raw", "packet", "netlink", "pipe", "many", "shared", "read", "register", "vsock",
     "become")
    and not name.endswith("_pair")
}  # fmt: skip


def _main(arguments: list[str]) -> None:
    serve = arguments[0] == "--serve"
    if not serve or arguments[1] == "own":
        enter_own_network()
    print("{}" if serve else f"pid {os.getpid()}", flush=True)
    if not serve:
        print(json.dumps(_LOADS[arguments[0]](int(arguments[1]))), flush=True)
    for line in sys.stdin:
        load, *amounts = line.split()
        print(json.dumps(_LOADS[load](*map(int, amounts))), flush=True)


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    sys.path.insert(0, str(Path(__file__).parent))
    _main(sys.argv[1:])
