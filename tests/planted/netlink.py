"""Set up network devices over rtnetlink(7) and ioctls: a guest has no `ip` and no `tc`.

Everything applies to the network namespace of the calling thread.
"""

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

from planted.sockets.common import libc

_CLONE_NEWNET = 0x40000000
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_EXCL = 1, 4, 0x400, 0x200
NEW = _NLM_F_REQUEST | _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL
_NLMSG_ERROR, _NESTED = 2, 0x8000

# include/uapi/linux: rtnetlink.h, if_link.h, veth.h, pkt_sched.h
_RTM_NEWLINK, _RTM_NEWQDISC = 16, 36
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_PID = 3, 4, 18, 19
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_TCA_KIND, _TCA_OPTIONS, _TCA_TBF_PARMS, _TCA_TBF_BURST = 1, 2, 1, 6
_TC_H_ROOT, _TC_H_FIRST = 0xFFFFFFFF, 0x10000

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_IFF_UP, _IFF_NOARP = 1, 0x80


def attribute(kind: int, value: bytes) -> bytes:
    """One netlink attribute, padded to its alignment."""
    return (struct.pack("HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def text(kind: int, value: str) -> bytes:
    """An attribute with a string that ends in a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """One netlink message with its header."""
    return struct.pack("IHHII", 16 + len(body), kind, flags, sequence, 0) + body


def ask(connection: socket.socket, request: bytes) -> None:
    """Send one request, or a batch, and read its acknowledgement. Raises OSError with the kernel's error."""
    connection.send(request)
    answer = connection.recv(65536)
    kind, error = struct.unpack_from("4xH10xi", answer)
    if kind == _NLMSG_ERROR and error:
        raise OSError(-error, f"netlink: {os.strerror(-error)}")


def enter_new_network() -> int:
    """Move into a new network namespace, without IPv6, which would send packets; returns its inode."""
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for name in ("all", "default"):
        set_sysctl(f"ipv6/conf/{name}/disable_ipv6", 1)
    return Path("/proc/thread-self/ns/net").stat().st_ino


def set_sysctl(name: str, value: int) -> None:
    """Set net.NAME (with slashes) of the network namespace; what the kernel lacks is left out."""
    path = Path("/proc/sys/net") / name
    if path.exists():
        path.write_text(str(value))


def add_veth(name: str, peer: str, *, peer_pid: int, mtu_bytes: int) -> None:
    """A pair of veth devices, one end here, one in the network namespace of another process."""
    header = struct.pack("BxHiII", 0, 0, 0, 0, 0)
    peer_end = header + text(_IFLA_IFNAME, peer) + attribute(_IFLA_MTU, struct.pack("I", mtu_bytes))
    peer_end += attribute(_IFLA_NET_NS_PID, struct.pack("I", peer_pid))
    body = header + text(_IFLA_IFNAME, name) + attribute(_IFLA_MTU, struct.pack("I", mtu_bytes))
    kind = attribute(_IFLA_INFO_KIND, b"veth")
    body += nested(_IFLA_LINKINFO, kind, nested(_IFLA_INFO_DATA, nested(_VETH_INFO_PEER, peer_end)))
    _ask_route(message(_RTM_NEWLINK, NEW, body))


def add_token_bucket(device: str, *, bytes_per_second: int, burst_bytes: int, limit_bytes: int) -> None:
    """Make tbf the device's root qdisc: it sends `burst_bytes`, then no more than this rate (man 8 tc-tbf)."""
    header = struct.pack("BxxxiIII", 0, socket.if_nametoindex(device), _TC_H_FIRST, _TC_H_ROOT, 0)
    rate = struct.pack("BBHhHI", 0, 1, 0, 0, 0, bytes_per_second)  # struct tc_ratespec, link layer: Ethernet
    parameters = rate + bytes(12) + struct.pack("III", limit_bytes, 0, 0)  # struct tc_tbf_qopt
    options = attribute(_TCA_TBF_PARMS, parameters) + attribute(_TCA_TBF_BURST, struct.pack("I", burst_bytes))
    _ask_route(message(_RTM_NEWQDISC, NEW, header + text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)))


def bring_up(device: str, address: str | None = None, *, arp: bool = False, queue_packets: int | None = None) -> None:
    """Give the device an address in a /24, a length of its queue, and switch it on."""
    name = device.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if queue_packets is not None:
            fcntl.ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si12x", name, queue_packets))
        (flags,) = struct.unpack_from("16xH", fcntl.ioctl(control, _SIOCGIFFLAGS, struct.pack("16s16x", name)))
        flags |= _IFF_UP | (0 if arp else _IFF_NOARP)
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags))
        if address is not None:
            for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
                sockaddr = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(control, request, struct.pack("16s24s", name, sockaddr))


def set_mtu(device: str, mtu_bytes: int) -> None:
    """Set the size of the largest packet of a device."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", device.encode(), mtu_bytes))


def transmitted_packets(device: str) -> int:
    """The packets that a device has sent, from /proc/net/dev."""
    (line,) = [
        line
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines()
        if line.strip().startswith(f"{device}:")
    ]
    return int(line.split(":")[1].split()[9])


def _ask_route(request: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as connection:
        ask(connection, request)
