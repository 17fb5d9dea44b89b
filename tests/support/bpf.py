"""Features of the bpf system call that no library offers: the list of programs, single runs, writes to per-CPU maps."""

import ctypes
import errno
import os
import struct
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.loader import BpfObject

_SYS_BPF = 321  # x86-64
_BPF_PROG_TEST_RUN, _BPF_PROG_GET_NEXT_ID, _BPF_PROG_GET_FD_BY_ID, _BPF_OBJ_GET_INFO_BY_FD = 10, 11, 13, 15
_BPF_PROG_LOAD, _BPF_PROG_TYPE_XDP, _BPF_F_TEST_XDP_LIVE_FRAMES = 5, 6, 2
_BPF_MAP_CREATE, _BPF_MAP_TYPE_ARRAY = 0, 2
_BPF_LINK_CREATE, _BPF_XDP, _XDP_FLAGS_DRV_MODE = 28, 37, 4
_GONE_SECONDS = 5.0
_NAME_OFFSET, _NAME_BYTES = 64, 16

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    status = _libc.syscall(_SYS_BPF, command, buffer, 128)
    if status < 0:
        raise OSError(ctypes.get_errno(), f"bpf({command})")
    return status, buffer.raw


def create_array_map() -> int:
    """The fd of a new array map with one entry of 8 bytes."""
    fd, _ = _bpf(_BPF_MAP_CREATE, struct.pack("IIIII", _BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0))
    return fd


def loaded_programs() -> dict[int, str]:
    """Id and name of every eBPF program that the kernel has."""
    programs: dict[int, str] = {}
    last = 0
    while True:
        try:
            _, answer = _bpf(_BPF_PROG_GET_NEXT_ID, struct.pack("II", last, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return programs
            raise
        (last,) = struct.unpack_from("I", answer, 4)
        try:
            fd, _ = _bpf(_BPF_PROG_GET_FD_BY_ID, struct.pack("I", last))
        except OSError as error:
            if error.errno == errno.ENOENT:  # gone meanwhile
                continue
            raise
        info = ctypes.create_string_buffer(256)
        try:
            _bpf(_BPF_OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, len(info), ctypes.addressof(info)))
        finally:
            os.close(fd)
        programs[last] = info.raw[_NAME_OFFSET : _NAME_OFFSET + _NAME_BYTES].split(b"\0")[0].decode()


def programs_of(pid: int) -> set[int]:
    """Ids of the programs that a process has file descriptors of."""
    open_files = [path for path in Path(f"/proc/{pid}/fdinfo").iterdir() if path.exists()]  # not that of this directory
    lines = [line for path in open_files for line in path.read_text().splitlines()]
    return {int(line.split()[1]) for line in lines if line.startswith("prog_id:")}


def wait_until_gone(programs: set[int]) -> set[int]:
    """The `programs` that still exist after the kernel has had time to free them."""
    deadline = time.monotonic() + _GONE_SECONDS
    while (left := programs & set(loaded_programs())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def run_raw_tracepoint(program_fd: int, *arguments: int) -> None:
    """Run a raw tracepoint program once, with these arguments in place of a real event's (Linux 5.10)."""
    context = struct.pack(f"{len(arguments)}Q", *arguments)
    buffer = ctypes.create_string_buffer(context, len(context))
    attributes = struct.pack(
        "IIIIQQIIIIQQ", program_fd, 0, 0, 0, 0, 0, 0, 0, len(context), 0, ctypes.addressof(buffer), 0
    )
    _bpf(_BPF_PROG_TEST_RUN, attributes)


def set_on_every_cpu(bpf: BpfObject, table: str, value: npt.NDArray[np.void], key: int = 0) -> None:
    """Overwrite an entry of a per-CPU array."""
    values = np.tile(value, len(bpf.read_per_cpu(table, value.dtype, key)))
    bpf.update(table, np.array([key], "<u4"), values.view((np.void, values.nbytes)))


XDP_DROP, XDP_PASS = 1, 2


def _load_xdp(action: int) -> int:
    """The fd of a program that returns the same action for every packet."""
    code = struct.pack("<BBHi", 0xB7, 0, 0, action) + bytes.fromhex("9500000000000000")  # r0 = action; exit
    code_buffer, text = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    fd, _ = _bpf(
        _BPF_PROG_LOAD,
        struct.pack("IIQQ", _BPF_PROG_TYPE_XDP, len(code) // 8, ctypes.addressof(code_buffer), ctypes.addressof(text)),
    )
    return fd


def attach_xdp(interface_index: int, action: int) -> int:
    """Make a driver run a program that returns `action` for every packet, while the returned fd is open."""
    program_fd = _load_xdp(action)
    try:
        link_fd, _ = _bpf(
            _BPF_LINK_CREATE, struct.pack("IIII", program_fd, interface_index, _BPF_XDP, _XDP_FLAGS_DRV_MODE)
        )
    finally:
        os.close(program_fd)
    return link_fd


def receive(packet: bytes, count: int, action: int) -> None:
    """Make the loopback device receive a packet the given number of times, each in a page of a kernel page pool.

    That is BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18.
    """
    fd = _load_xdp(action)
    data = ctypes.create_string_buffer(packet, len(packet))
    try:
        _bpf(
            _BPF_PROG_TEST_RUN,
            struct.pack(
                "IIIIQQIIIIQQIII",
                *(fd, 0, len(packet), 0, ctypes.addressof(data), 0, count, 0),
                *(0, 0, 0, 0, _BPF_F_TEST_XDP_LIVE_FRAMES, 0, 64),
            ),
        )
    finally:
        os.close(fd)


def receive_and_drop(packets: int) -> None:
    """Make the kernel take packets from a page pool and drop them."""
    receive(bytes(64), packets, XDP_DROP)
