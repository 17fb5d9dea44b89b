"""The network that loads are planted in: a namespace with a loopback, and hand-made packets for it."""

import ctypes
import fcntl
import json
import socket
import struct
import subprocess

from planted.sockets.common import libc

ETHERNET_BYTES, IPV4_BYTES, UDP_BYTES = 14, 20, 8

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 1


def enter_own_network() -> None:
    """A new network namespace with only a loopback device, which is up."""
    if libc.unshare(_CLONE_NEWNET):
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


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def mac_address(interface: str) -> str:
    found: str = json.loads(ip("-json", "link", "show", interface))[0]["address"]
    return found.replace(":", "")


def ethernet(destination: bytes, ip: bytes) -> bytes:
    return destination + b"\x02memdi" + b"\x08\x00" + ip


def ipv4(
    source: str, destination: str, payload: bytes, *, number: int = 0, offset: int = 0, more: bool = False
) -> bytes:
    """A UDP packet, or a fragment of one."""
    flags = offset // 8 | (0x2000 if more else 0)
    header = struct.pack(">BBHHHBBH", 0x45, 0, IPV4_BYTES + len(payload), number, flags, 64, socket.IPPROTO_UDP, 0)
    header += socket.inet_aton(source) + socket.inet_aton(destination)
    return header[:10] + struct.pack(">H", internet_checksum(header)) + header[12:] + payload


def internet_checksum(data: bytes) -> int:
    total = sum(int(word) for word in struct.unpack(f">{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
