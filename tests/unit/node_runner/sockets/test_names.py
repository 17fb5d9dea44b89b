"""Readable names of families, states and addresses."""

import socket

import pytest

from memdiag_node.sockets.names import family_name, inet_address, protocol_name, state_name, unix_address


@pytest.mark.parametrize(
    ("family", "address", "port", "text"),
    [
        (socket.AF_INET, bytes([192, 0, 2, 1]), 80, "192.0.2.1:80"),
        (socket.AF_INET, bytes(4), 0, "0.0.0.0:*"),
        (socket.AF_INET6, bytes(15) + b"\1", 443, "[::1]:443"),
        (socket.AF_INET6, bytes(10) + b"\xff\xff" + bytes([10, 0, 0, 9]), 8080, "10.0.0.9:8080"),
    ],
)
def test_inet_addresses(family: int, address: bytes, port: int, text: str) -> None:
    assert inet_address(family, address, port) == text


@pytest.mark.parametrize(
    ("name", "inode", "text"),
    [
        (b"/run/docker.sock\0", 5, "/run/docker.sock"),
        (b"\0abstract", 5, "@abstract"),
        (b"", 5, "inode 5"),
        (b"", 0, ""),
        (b"/tmp/\x1b[31m\xff", 5, "/tmp/?[31m\ufffd"),
    ],
)
def test_unix_addresses_are_always_printable(name: bytes, inode: int, text: str) -> None:
    assert unix_address(name, inode) == text
    assert unix_address(name, inode).isprintable()


def test_names_that_are_not_known_are_numbers() -> None:
    assert family_name(99) == "family 99"
    assert protocol_name(socket.AF_INET, 77, socket.SOCK_DGRAM) == "protocol 77"
    assert protocol_name(socket.AF_NETLINK, 77, socket.SOCK_RAW) == "protocol 77"
    assert state_name(socket.AF_INET, socket.SOCK_STREAM, 77) == "state 77"
    assert protocol_name(socket.AF_INET, socket.IPPROTO_ICMP, socket.SOCK_RAW) == "raw ICMP"
    assert protocol_name(socket.AF_INET6, 262, socket.SOCK_STREAM) == "MPTCP"
