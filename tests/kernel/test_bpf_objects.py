"""BPF maps and programs, planted with known types, found with their owner; sizes compared with the kernel's fdinfo."""

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.bpf_maps import _read, read_own_map_ids
from memdiag_node.holders.map_sizes import MapType
from memdiag_node.holders.registry import other_holders
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.sockets.scanner import SocketScanner
from planted.allocations import MIB, Allocator
from support.sockets import fds_of, holder_layout, other_holders_of, owner_of

_SYS_BPF = 321  # x86-64
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD = 0, 2, 5
_SOCKET_FILTER = 1
_NO_PREALLOC, _MMAPABLE = 1, 1 << 10
_DEADLINE_SECONDS = 10
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> int:
    result: int = _libc.syscall(_SYS_BPF, command, attributes.ljust(120, b"\0"), 120)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf: {os.strerror(ctypes.get_errno())}")
    return result


@contextmanager
def planted_map(kind: MapType, key: int, value: int, entries: int, flags: int = 0) -> Iterator[int]:
    name = b"planted".ljust(16, b"\0")
    attributes = struct.pack("IIIII", kind, key, value, entries, flags) + struct.pack("II", 0, 0) + name
    fd = bpf(_MAP_CREATE, attributes)
    try:
        yield fd
    finally:
        os.close(fd)


def fill(fd: int, keys: int, value_bytes: int) -> None:
    for number in range(keys):
        key = ctypes.create_string_buffer(struct.pack("I", number))
        value = ctypes.create_string_buffer(value_bytes)
        attributes = struct.pack("IIQQQ", fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0)
        update_once_there_is_memory(attributes)


def update_once_there_is_memory(attributes: bytes) -> None:
    """A map that does not allocate in advance has a small stock, which an interrupt refills: it can be late."""
    end = time.monotonic() + _DEADLINE_SECONDS
    while True:
        try:
            bpf(_MAP_UPDATE, attributes)
        except OSError as error:
            if error.errno != errno.ENOMEM or time.monotonic() > end:
                raise
            time.sleep(0.001)
        else:
            return


def kernels_own_bytes(fd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))


def maps_of(scanner: SocketScanner, pid: int) -> list[Holder]:
    found = other_holders_of(scanner, scanner.scan())
    return [one for one in found if one.kind is HolderKind.BPF_MAP and pid in fds_of(one)]


def test_large_maps_are_named_with_process_fd_and_bytes(scanner: SocketScanner) -> None:
    with Allocator() as child:
        for _ in range(4):
            child.do("bpf_map", 50 * MIB)
        found = maps_of(scanner, child.pid)
    assert len(found) == 4
    assert all(one.pinned_bytes == pytest.approx(50 * MIB, rel=0.02) for one in found)
    assert {one.memory_class for one in found} == {"Vmalloc"}
    assert len({fd for one in found for fd in fds_of(one)[child.pid]}) == 4


def test_small_maps_of_a_process_are_summed_up(scanner: SocketScanner) -> None:
    with Allocator() as child:
        for _ in range(9):
            child.do("bpf_map", 64 << 10)
        (one,) = maps_of(scanner, child.pid)
    assert (one.summed, len(fds_of(one)[child.pid])) == (9, 9)
    assert one.pinned_bytes == pytest.approx(9 * (64 << 10), rel=0.02)


@pytest.mark.parametrize(
    ("kind", "key", "value", "flags"),
    [
        (MapType.ARRAY, 4, 100, 0),
        (MapType.ARRAY, 4, 100, _MMAPABLE),
        (MapType.PERCPU_ARRAY, 4, 100, 0),
        (MapType.PROG_ARRAY, 4, 4, 0),
        (MapType.PERF_EVENT_ARRAY, 4, 4, 0),
        (MapType.HASH, 4, 100, 0),
        (MapType.HASH, 4, 100, _NO_PREALLOC),
        (MapType.PERCPU_HASH, 4, 100, 0),
        (MapType.PERCPU_HASH, 4, 100, _NO_PREALLOC),
        (MapType.LRU_HASH, 4, 100, 0),
        (MapType.LRU_PERCPU_HASH, 4, 100, 0),
        (MapType.QUEUE, 0, 100, 0),
        (MapType.STACK, 0, 100, 0),
        (MapType.STACK_TRACE, 4, 8, 0),
        (MapType.DEVMAP, 4, 4, 0),
        (MapType.SOCKMAP, 4, 4, 0),
        (MapType.XSKMAP, 4, 4, 0),
        (MapType.SOCKHASH, 4, 4, 0),
        (MapType.DEVMAP_HASH, 4, 4, 0),
    ],
)
def test_sizes_agree_with_the_kernels_own(
    scanner: SocketScanner, kind: MapType, key: int, value: int, flags: int
) -> None:
    entries = 10_000
    with planted_map(kind, key, value, entries, flags) as fd:
        if flags == _NO_PREALLOC:
            fill(fd, entries // 2, value * (os.sysconf("SC_NPROCESSORS_CONF") + 1))
        expected_bytes = kernels_own_bytes(fd)
        scan = scanner.scan()
        mine = scan.files[(scan.files["kind"] == FileKind.BPF_MAP) & (scan.files["fd"] == fd)]
        (address,) = {int(file["socket"]) for file in mine if file["pid"] == os.getpid()}
        maps, _ = _read(scanner.source.memory, holder_layout(), scanner.source.bpf_maps())
    (one,) = [one for one in maps if one.address == address]
    assert one.size_bytes == pytest.approx(expected_bytes, rel=0.02)


def test_own_maps_are_known_by_their_ids_while_they_are_open() -> None:
    before = read_own_map_ids()
    with planted_map(MapType.ARRAY, 4, 8, 8) as fd, Allocator() as child:
        child.do("bpf_map", MIB)
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        (number,) = (int(line.split()[1]) for line in lines if line.startswith("map_id:"))
        assert read_own_map_ids() - before == {number}
    assert read_own_map_ids() == before


def test_a_map_that_only_a_program_uses_names_the_program(scanner: SocketScanner) -> None:
    with ExitStack() as opened:
        with planted_map(MapType.ARRAY, 4, 4096, 200) as map_fd:
            # r1 = map; r0 = 0; exit
            code = struct.pack("<BBhi", 0x18, 0x11, 0, map_fd) + struct.pack("<BBhi", 0, 0, 0, 0)
            code += struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
            instructions, license_text = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
            attributes = struct.pack(
                "IIQQIIQII16s",
                *(_SOCKET_FILTER, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_text)),
                *(0, 0, 0, 0, 0, b"planted_user"),
            )
            program_fd = bpf(_PROG_LOAD, attributes)
            opened.callback(os.close, program_fd)
        found = [one.holder for one in other_holders(scanner, scanner.scan(), owner_of, holder_layout())[0]]
    (one,) = [one for one in found if one.kind is HolderKind.BPF_MAP and "planted," in one.description]
    assert one.owners == []
    assert one.unowned_reason.startswith("no fd: used by the loaded program planted_user, id ")
    assert one.pinned_bytes == pytest.approx(200 * 4096, rel=0.02)
    programs = [one for one in found if one.kind is HolderKind.BPF_PROGRAM]
    assert any(program_fd in fds_of(one).get(os.getpid(), []) for one in programs)
