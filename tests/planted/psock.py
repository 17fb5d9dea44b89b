"""Data that a socket map has taken out of a TCP connection's receive queue, and that its process does not read."""

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from planted.bpf_and_xdp import bpf
from planted.child import Truth, held
from planted.netlink import bring_up, enter_new_network
from planted.sockets.common import outq, tcp_pair, wait_for

_MAP_CREATE, _MAP_UPDATE, _PROGRAM_LOAD, _PROGRAM_ATTACH = 0, 2, 5, 8
_SOCKMAP, _SK_SKB, _STREAM_VERDICT = 15, 14, 5
_REDIRECT_MAP, _INGRESS = 52, 1  # bpf_sk_redirect_map(), BPF_F_INGRESS


@dataclass(frozen=True, slots=True)
class SockmapBacklog:
    """Unread data of one connection, in the lists of its `struct sk_psock`."""

    pid: int
    fd: int
    inode: int
    network_namespace: int
    unread_bytes: int


@contextlib.contextmanager
def sockmap_backlog(messages: int = 500, message_bytes: int = 4_000) -> Iterator[SockmapBacklog]:
    """Each message is sent when the one before has arrived, and redirected to where it arrived."""
    with held(_sockmap_backlog, messages, message_bytes) as child:
        fd = child.truth["fd"]
        yield SockmapBacklog(child.pid, fd, child.inode(fd), child.network_namespace, messages * message_bytes)


def _sockmap_backlog(kept: ExitStack, messages: int, message_bytes: int) -> Truth:
    enter_new_network()
    bring_up("lo")
    sender, receiver = tcp_pair()
    socket_map = bpf(_MAP_CREATE, struct.pack("IIII", _SOCKMAP, 4, 4, 1))
    program = _load(_redirect_to_first(socket_map))
    bpf(_PROGRAM_ATTACH, struct.pack("III", socket_map, program, _STREAM_VERDICT))
    key, value = ctypes.c_uint32(0), ctypes.c_uint32(receiver.fileno())
    bpf(_MAP_UPDATE, struct.pack("IxxxxQQQ", socket_map, ctypes.addressof(key), ctypes.addressof(value), 0))
    for fd in (socket_map, program):
        kept.callback(os.close, fd)
    sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range(messages):
        sender.sendall(b"m" * message_bytes)
        wait_for(lambda: outq(sender) == 0, "the message's arrival")
    return {"fd": receiver.fileno()}


def _redirect_to_first(socket_map: int) -> bytes:
    """A program that redirects every packet to the receiving side of the map's first socket."""
    steps = (
        (0x18, 0x12, socket_map),  # r2 = the map (two steps)
        (0x00, 0x00, 0),
        (0xB7, 0x03, 0),  # r3 = the key
        (0xB7, 0x04, _INGRESS),  # r4 = the flags
        (0x85, 0x00, _REDIRECT_MAP),
        (0x95, 0x00, 0),
    )
    return b"".join(struct.pack("BBhi", code, registers, 0, value) for code, registers, value in steps)


def _load(program: bytes) -> int:
    steps, license_name = ctypes.create_string_buffer(program, len(program)), ctypes.create_string_buffer(b"GPL")
    addresses = ctypes.addressof(steps), ctypes.addressof(license_name)
    return bpf(_PROGRAM_LOAD, struct.pack("IIQQ", _SK_SKB, len(program) // 8, *addresses))
