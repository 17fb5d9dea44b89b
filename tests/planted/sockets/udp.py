"""UDP and UDP-Lite: datagrams in slab, in pages and fragments of pages, in lists of packets, in memory of a process."""

import ctypes
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct

from planted.sockets.common import F_SETPIPE_SZ, MIB, PAGE_BYTES, SO_RCVBUFFORCE, Truth, keep, libc, lone, udp_pair
from planted.sockets.network import (
    ETHERNET_BYTES,
    IPV4_BYTES,
    UDP_BYTES,
    ethernet,
    ip,
    ipv4,
    mac_address,
    set_loopback_mtu,
)

_UDPLITE = 136
_SO_TIMESTAMPING = 37
_TIMESTAMPS_OF_SENT = 1 << 1 | 1 << 4  # include/uapi/linux/net_tstamp.h: SOF_TIMESTAMPING_TX_SOFTWARE, _SOFTWARE
_TAP = "tap0"
_PR_SET_PDEATHSIG = 1


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


def udp_lone(size: int) -> Truth:
    return lone(udp_pair(), size)


def udp6_lone(size: int) -> Truth:
    return lone(udp_pair(socket.AF_INET6), size)


def udp_reader_queue(amount: int) -> Truth:
    """Reading one moves all waiting ones into the reader's queue; the same number follows."""
    sender, receiver = udp_pair()
    for _ in range(amount + 1):
        sender.send(b"r" * 500)
    receiver.recv(600)
    for _ in range(amount):
        sender.send(b"r" * 500)
    return {"fd": receiver.fileno(), "unread_bytes": 1000 * amount, "packets": 2 * amount, "reader_packets": amount}


def udp_fragmented(amount: int) -> Truth:
    """Datagrams larger than the MTU: reassembled from fragments, they are packets with a list of packets."""
    set_loopback_mtu(8020)
    sender, receiver = udp_pair()
    for _ in range(amount):
        sender.send(b"f" * 24000)
    return {"fd": receiver.fileno(), "unread_bytes": 24000 * amount, "packets": amount}


def udp_error_queue(amount: int) -> Truth:
    """The sender requests timestamps of its datagrams: a copy of each, with all headers, waits with the timestamp."""
    sender, _ = udp_pair()
    sender.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _TIMESTAMPS_OF_SENT)
    for _ in range(amount):
        sender.send(b"e" * 200)
    return {"fd": sender.fileno(), "bytes": amount * (ETHERNET_BYTES + IPV4_BYTES + UDP_BYTES + 200)}


def udp_nested_fragments(amount: int) -> Truth:
    """Fragments of datagrams, each in a VXLAN packet that was itself fragmented: packet lists in packet lists."""
    ip("link", "add", "vx0", "type", "vxlan", "id", "7", "local", "127.0.0.1", "dstport", "4789", "dev", "lo")
    ip("address", "add", "10.99.0.1/24", "dev", "vx0")
    ip("link", "set", "vx0", "up")
    address = bytes.fromhex(mac_address("vx0"))
    set_loopback_mtu(4000)
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    receiver.bind(("10.99.0.1", 0))
    tunnel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    payload = 24_000
    for number in range(amount):
        port = receiver.getsockname()[1]
        datagram = struct.pack(">HHHH", 9, port, UDP_BYTES + payload, 0) + b"n" * payload
        for offset in range(0, len(datagram), 8_000):
            part, more = datagram[offset : offset + 8_000], offset + 8_000 < len(datagram)
            inner = ipv4("10.99.0.2", "10.99.0.1", part, number=number + 1, offset=offset, more=more)
            vxlan = struct.pack(">II", 0x08000000, 7 << 8)
            tunnel.sendto(vxlan + ethernet(address, inner), ("127.0.0.1", 4789))
    keep(receiver, tunnel)
    return {"fd": receiver.fileno(), "unread_bytes": amount * payload, "packets": amount}


def udp_head_fragments(amount: int) -> Truth:
    """Frames written to a TAP device: their heads are cut from a page fragment.

    Of everything cut from one 32 KiB block only one datagram has a receiver, so each keeps a separate block.
    """
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)  # otherwise the kernel copies into a slab head
    fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", _TAP.encode(), 0x1002))  # TUNSETIFF: IFF_TAP, IFF_NO_PI
    ip("address", "add", "10.98.0.1/24", "dev", _TAP)
    ip("link", "set", _TAP, "up")
    address = bytes.fromhex(mac_address(_TAP))
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
    receiver.bind(("10.98.0.1", 0))
    port = receiver.getsockname()[1]
    for number in range(amount):
        for to in (port, *[9] * 31):  # about 1.5 KiB each, including the room that the kernel adds
            datagram = struct.pack(">HHHH", 9, to, UDP_BYTES + 1_000, 0) + b"h" * 1_000
            os.write(tap, ethernet(address, ipv4("10.98.0.2", "10.98.0.1", datagram, number=number)))
    keep(receiver)
    return {"fd": receiver.fileno(), "unread_bytes": amount * 1_000, "packets": amount}


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
    """Datagrams of 16 fragments, each of 64 bytes in a different page of this process."""
    sender, receiver = udp_pair()
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, F_SETPIPE_SZ, MIB)
    pages = mmap.mmap(-1, 16 * amount * PAGE_BYTES)
    base = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for page in range(16 * amount):
        pages[page * PAGE_BYTES] = 1
    vector = (_Iovec * 16)()
    for datagram in range(amount):
        for part in range(16):
            vector[part] = _Iovec(base + (16 * datagram + part) * PAGE_BYTES, 64)
        if libc.vmsplice(write_end, vector, ctypes.c_ulong(16), 0) != 1024:
            raise OSError(ctypes.get_errno(), "vmsplice")
        if libc.splice(read_end, None, sender.fileno(), None, ctypes.c_size_t(1024), 0) != 1024:
            raise OSError(ctypes.get_errno(), "splice")
    keep(pages)
    return {"fd": receiver.fileno(), "unread_bytes": 1024 * amount, "user_bytes": 16 * amount * PAGE_BYTES}


def udp_spliced_pipe_pages(amount: int) -> Truth:
    """`amount` datagrams, each of one page that was written into a pipe: kernel memory that is moved."""
    sender, receiver = udp_pair()
    read_end, write_end = os.pipe()
    for _ in range(amount):
        os.write(write_end, b"p" * 1000)
        if libc.splice(read_end, None, sender.fileno(), None, ctypes.c_size_t(1000), 0) != 1000:
            raise OSError(ctypes.get_errno(), "splice")
    return {"fd": receiver.fileno(), "unread_bytes": 1000 * amount, "pinned_bytes": amount * PAGE_BYTES}


def many_udp(amount: int) -> Truth:
    """`amount` sockets in several processes, each with two datagrams of 100 bytes that it sent to itself."""
    each = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 100
    for start in range(0, amount, each):
        ready, done = os.pipe()
        if not os.fork():
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in range(start, min(start + each, amount)):
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                sock.bind((f"127.0.{1 + number // 20_000}.1", 20_000 + number % 20_000))
                sock.connect(sock.getsockname())
                sock.send(b"m" * 100)
                sock.send(b"m" * 100)
                keep(sock)
            os.write(done, b"!")
            signal.pause()
        os.close(done)
        os.read(ready, 1)
    return {"sockets": amount, "packets": 2 * amount, "unread_bytes": 200 * amount}
