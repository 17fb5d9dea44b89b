"""Loaded eBPF programs: iterators, programs that user space runs, and the kernel's counters of both."""

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProgramInfoLayout:
    """The offsets of fields in this kernel's struct bpf_prog_info, in bytes; None for a missing field."""

    size_bytes: int
    id: int | None
    recursion_misses: int | None
    run_time_ns: int | None

    @classmethod
    def of(cls, btf: Btf) -> Self:
        """Look the offsets up."""

        def offset(field: str) -> int | None:
            return btf.offset_bytes("bpf_prog_info", field) if btf.has_field("bpf_prog_info", field) else None

        return cls(
            size_bytes=btf.size_bytes("bpf_prog_info"),
            id=offset("id"),
            recursion_misses=offset("recursion_misses"),  # since Linux 5.12
            run_time_ns=offset("run_time_ns"),
        )


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """The kernel's counters of a loaded program (struct bpf_prog_info)."""

    function: str
    program_id: int
    recursion_misses: int
    run_seconds: float


class IteratorLink:
    """An attached BPF iterator: each `read` runs it once over all objects."""

    def __init__(self, libbcc: ctypes.CDLL, function: str, link_fd: int) -> None:
        self._libbcc = libbcc
        self._function = function
        self._link_fd = link_fd

    def read(self) -> bytes:
        """Create a new iterator in the caller's network namespace, and read it to the end."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Like `read`, in pieces of whole records: each read asks for more than the kernel buffers (32 KiB)."""
        iterator_fd = self._libbcc.bcc_iter_create(self._link_fd)
        if iterator_fd < 0:
            raise BpfError.of(f"{self._function}: the iterator cannot be created", -iterator_fd)
        with os.fdopen(iterator_fd, "rb", buffering=0) as stream:
            while part := stream.read(_READ_BYTES):
                yield part

    def close(self) -> None:
        """Detach the iterator. Idempotent."""
        if self._link_fd >= 0:
            os.close(self._link_fd)
            self._link_fd = -1


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf in its first versions; all zero except the size: run the program as it is."""

    _fields_ = (
        ("size", ctypes.c_size_t),
        ("data_and_context", ctypes.c_uint64 * 5),
        ("sizes_and_results", ctypes.c_uint32 * 5),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


_RUN_ON_CPU = 1  # include/uapi/linux/bpf.h, BPF_F_TEST_RUN_ON_CPU
_RUN_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_RunOptions), use_errno=True)


class RunnableProgram:
    """A raw tracepoint program that is attached to nothing: user space runs it (BPF_PROG_RUN, Linux 5.10)."""

    def __init__(self, libbpf: ctypes.CDLL, function: str, program_fd: int) -> None:
        # Our own prototype: newer bcc sets one on the library's function that expects bcc's structure.
        self._run = _RUN_PROTOTYPE(("bpf_prog_test_run_opts", libbpf))
        self._function = function
        self._program_fd = program_fd
        self._options = _RunOptions()

    def run(self) -> None:
        """Run it once, on this CPU. Raises BpfError."""
        status = self._run_once()
        if status:
            raise BpfError.of(f"{self._function}: the program cannot be run", status)

    def run_on(self, cpu: int) -> bool:
        """Run it once on another CPU, in its interrupt context. False if that CPU is offline. Raises BpfError."""
        status = self._run_once(_RUN_ON_CPU, cpu)
        if status not in (0, errno.ENXIO):
            raise BpfError.of(f"{self._function}: the program cannot be run on CPU {cpu}", status)
        return status == 0

    def _run_once(self, flags: int = 0, cpu: int = 0) -> int:
        """The error number, 0 for none."""
        ctypes.memset(ctypes.byref(self._options), 0, ctypes.sizeof(self._options))
        self._options.size = ctypes.sizeof(self._options)
        self._options.flags, self._options.cpu = flags, cpu
        status = self._run(self._program_fd, ctypes.byref(self._options))
        return (ctypes.get_errno() or -status) if status else 0
