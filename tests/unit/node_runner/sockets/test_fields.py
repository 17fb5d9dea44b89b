"""Every field that is read from the kernel for each socket is used."""

import ast
import re
from collections.abc import Iterator

import pytest

from local_cluster.paths import PROJECT
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.kernel import memory
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import MEMORY_DEFINES
from memdiag_node.sockets import source as sockets
from memdiag_node.sockets.source import socket_defines

RECORDED = PROJECT / "tests/fixtures/btf/linux-5.10-x86_64.btf"
RUNNER = PROJECT / "node_runner/memdiag_node"
MODULES = [ast.parse(path.read_text()) for path in sorted(RUNNER.rglob("*.py"))]
C_FILES = ("sockets/sockets.bpf.c", "kernel/memory.bpf.h", "kernel/common.bpf.h")
C_SOURCE = "".join((RUNNER / name).read_text() for name in C_FILES)
FIELD_TABLES = [
    value
    for module in (sockets, memory, pipes, packet_rings, ring_buffers, page_pools)
    for name, value in vars(module).items()
    if name.startswith("_") and isinstance(value, tuple) and value and isinstance(value[0], tuple)
]


def looked_up() -> Iterator[object]:
    """Constants that the runner's code uses as an index, directly or in a loop."""
    for node in (node for module in MODULES for node in ast.walk(module)):
        if isinstance(node, ast.Subscript):
            yield from (one.value for one in ast.walk(node.slice) if isinstance(one, ast.Constant))
        elif isinstance(node, ast.For | ast.comprehension):
            yield from (one.value for one in ast.walk(node.iter) if isinstance(one, ast.Constant))


def test_each_field_of_a_description_is_used() -> None:
    assert set(sockets.DESCRIPTION_DTYPE.names or ()) - {"unused"} <= set(looked_up())


def test_the_field_tables_are_found() -> None:
    assert len(FIELD_TABLES) > 10


@pytest.mark.parametrize("name", sorted({field[0] for table in FIELD_TABLES for field in table}))
def test_each_offset_is_used_by_the_programs_or_by_the_runner(name: str) -> None:
    python = sum(path.read_text().count(f'"{name}"') for path in RUNNER.rglob("*.py"))
    assert re.search(rf"\b{name}\b", C_SOURCE) or python > 1


def test_nothing_is_compiled_in_that_the_programs_do_not_use() -> None:
    compiled = set(socket_defines(Btf.parse(RECORDED.read_bytes()))) - set(MEMORY_DEFINES)
    assert {name for name in compiled if not re.search(rf"\b{name}\b", C_SOURCE)} == set()
