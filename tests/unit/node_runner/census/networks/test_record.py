"""Network namespaces in the document: which are zombies, what keeps each, and which are listed."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from memdiag_api import limits
from memdiag_node.census.networks.namespaces import NAMESPACE_DTYPE, Namespaces
from memdiag_node.census.networks.record import kept_by, namespaces_record
from memdiag_node.census.networks.sockets import SOCKET_DTYPE, CensusSockets, protocol_name
from memdiag_node.render.namespaces import namespaces_lines
from memdiag_node.render.text import WIDTH

TCP, UDP = 0x1000, 0x2000
FIN_WAIT_1 = 4


def namespaces(*rows: dict[str, int], sockets: list[dict[str, int]] | None = None) -> Namespaces:
    """Namespaces with these fields, numbered from 1 by address and inode."""
    table = np.zeros(len(rows), NAMESPACE_DTYPE)
    for number, row in enumerate(rows):
        for name, value in ({"network": number + 1, "inode": number + 1, "references": 1} | row).items():
            table[name][number] = value
    found = np.zeros(len(sockets or []), SOCKET_DTYPE)
    for number, row in enumerate(sockets or []):
        for name, value in row.items():
            found[name][number] = value
    names = [[b"lo", b"eth\x1b0"] for _ in rows]
    return Namespaces(table, names, CensusSockets(found, {TCP: "TCP", UDP: "UDPv6"}, {}, is_whole=True), 1.0)


@pytest.mark.parametrize("holder", ["processes", "files", "mounts", "open_sockets", "is_initial", "is_listed_by_nsfs"])
def test_one_holder_is_enough_not_to_be_a_zombie(holder: str) -> None:
    record = namespaces_record(namespaces({}, {holder: 1}))
    assert [(one.inode, one.is_zombie) for one in record.listed] == [(1, True), (2, False)]


def test_a_sample_shows_no_zombie_and_its_figures_are_scaled() -> None:
    found = replace(namespaces({"size_bytes": 100, "sockets": 3, "devices": 2}), sampled_share=0.5)
    record = namespaces_record(found)
    (one,) = record.listed
    assert (record.zombies, one.is_zombie, one.size_bytes, one.sockets) == (0, False, 200, 6)
    assert one.devices == 2, "they are in a list, not in the sample"


def test_zombies_come_first_then_the_largest_and_all_are_counted() -> None:
    rows = [{"size_bytes": size, "processes": size % 2} for size in range(limits.MAX_NAMESPACES + 10)]
    record = namespaces_record(namespaces(*rows))
    assert record.total == len(rows)
    assert record.zombies == len(rows) // 2
    assert record.zombie_bytes == sum(range(0, len(rows), 2))
    assert len(record.listed) == limits.MAX_NAMESPACES
    order = [(not one.is_zombie, -one.size_bytes) for one in record.listed]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"is_initial": 1}, "the kernel: it is the initial one"),
        ({"references": 0, "passive": 2}, "nothing: it is being removed, 2 references to its memory left"),
        ({"processes": 1, "counted_references": 1}, "1 process"),
        ({"processes": 2, "references": 9}, "2 processes"),
        ({"files": 1, "mounts": 2, "counted_references": 1}, "1 open file of it; 2 mounts of it"),
        ({"open_sockets": 2, "references": 2, "counted_references": 2}, "2 open sockets"),
        ({"references": 3, "counted_references": 1}, "2 references that no known object has"),
        ({"references": 1, "counted_references": 2}, "unknown"),
    ],
)
def test_what_keeps_a_namespace(row: dict[str, int], expected: str) -> None:
    assert kept_by(namespaces(row).table[0], Counter()) == expected


def test_the_closed_sockets_that_keep_a_zombie_are_named() -> None:
    closed = {"network": 1, "holds_network": 1, "references": 1}
    found = namespaces(
        {"references": 4, "counted_references": 4},
        sockets=[
            closed | {"protocol": TCP, "state": FIN_WAIT_1},
            closed | {"protocol": TCP, "state": FIN_WAIT_1},
            closed | {"protocol": TCP, "state": 99},
            closed | {"protocol": UDP, "references": 0},
            closed | {"protocol": TCP, "has_file": 1},
            closed | {"protocol": TCP, "holds_network": 0},
            closed | {"protocol": TCP, "network": 2},
        ],
    )
    assert namespaces_record(found).listed[0].kept_by == (
        "4 sockets that no process has (2 TCP in FIN-WAIT-1, 1 TCP in an unknown state, "
        "1 UDPv6 closed with packets that still wait)"
    )


def test_names_of_devices_are_made_safe_to_print() -> None:
    (one,) = namespaces_record(namespaces({"devices": 7})).listed
    assert one.device_names == ["lo", "eth\\x1b0"]


@pytest.mark.parametrize(
    ("text", "name"),
    [(b"TCPv6", "TCPv6"), (b"AF_VSOCK", "AF_VSOCK"), (b"", ""), (b"a b", ""), (b"\xff\x01", ""), (b"x" * 32, "")],
)
def test_what_the_name_of_a_protocol_can_be(text: bytes, name: str) -> None:
    assert protocol_name(text) == name


def test_only_zombies_and_large_namespaces_are_worth_a_line() -> None:
    quiet = namespaces_record(namespaces({"processes": 1, "size_bytes": 1 << 20}))
    assert namespaces_lines(quiet) == []
    lines = namespaces_lines(namespaces_record(namespaces({"size_bytes": 5 << 20, "devices": 3}, {"processes": 1})))
    assert lines[0].startswith(
        "NETWORK NAMESPACES   2 on this node, 1 that no process, fd or mount refers to (5.00 MiB)"
    )
    assert any("lo, eth\\x1b0 (+1)" in line for line in lines)
    assert any("kept by 1 reference that no known object has" in line for line in lines)
    many = namespaces_record(namespaces(*[{"devices": 2}] * 30))
    assert all(len(line) <= WIDTH for line in namespaces_lines(many))
    assert namespaces_lines(many)[-1] == "  ... and 22 more"
