"""Compiling, loading and attaching eBPF programs: the only module that imports bcc.

Every link to the kernel is a file descriptor of this process and nothing is pinned, so the kernel itself removes
programs and maps when the process ends, in whatever way it ends. `BpfObject.close` does it earlier.
"""

import ctypes
import errno
import mmap
import os
import platform
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf

_STUB_HEADERS = Path(__file__).with_name("stubs")

_HEADERS = Path(__file__).parent
_INCLUDE = re.compile(r'#include "(\w+\.bpf\.h)"')

_QUIET_FLAGS = ("-Wno-everything", "-fno-color-diagnostics")
_MAX_LOG_CHARACTERS = 2_000
_READ_BYTES = 1 << 20
_COMPILER_CODE = re.compile(r" r-xp .*/lib(LLVM|clang)[^/]*$")
_MAX_C_INT = 0x7FFFFFFF
_BATCH_ENTRIES = 4_096
_KEY_DTYPE = np.dtype("<u4")


class BpfError(Exception):
    """eBPF that cannot be compiled, loaded, attached or read; the message says what, why and how to mend it."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.errno = code


class ClosedOnExit(ABC):
    """What holds programs and maps: used as a context manager, its end calls `close`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Free everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class ProgramInfoLayout:
    """Where this kernel's struct bpf_prog_info has its fields, in bytes; None for one that it lacks."""

    size_bytes: int
    id: int | None
    recursion_misses: int | None
    run_time_ns: int | None

    @classmethod
    def of(cls, btf: Btf) -> Self:
        """Look it up."""

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
    """What the kernel counts about a loaded program (struct bpf_prog_info)."""

    function: str
    program_id: int
    recursion_misses: int
    run_seconds: float


class IteratorLink:
    """An attached BPF iterator: each `read` runs it once over everything."""

    def __init__(self, libbcc: ctypes.CDLL, function: str, link_fd: int) -> None:
        self._libbcc = libbcc
        self._function = function
        self._link_fd = link_fd

    def read(self) -> bytes:
        """Create the iterator anew, in the caller's network namespace, and drain it."""
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """As `read`, piece by piece: whole records, as each read asks for more than the kernel buffers (32 KiB)."""
        iterator_fd = self._libbcc.bcc_iter_create(self._link_fd)
        if iterator_fd < 0:
            raise _error(f"{self._function}: the iterator cannot be created", -iterator_fd)
        with os.fdopen(iterator_fd, "rb", buffering=0) as stream:
            while part := stream.read(_READ_BYTES):
                yield part

    def close(self) -> None:
        """Detach the iterator. Idempotent."""
        if self._link_fd >= 0:
            os.close(self._link_fd)
            self._link_fd = -1


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf, as far as its first size; all zero but the size runs a program as it is."""

    _fields_ = (("size", ctypes.c_size_t), ("fields", ctypes.c_uint64 * 16))


_RUN_PROTOTYPE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_RunOptions), use_errno=True)


class RunnableProgram:
    """A raw tracepoint program that is attached to nothing: user space runs it (BPF_PROG_RUN, Linux 5.10)."""

    def __init__(self, libbpf: ctypes.CDLL, function: str, program_fd: int) -> None:
        # A prototype of our own: newer bcc gives the library's function one that wants bcc's structure.
        self._run = _RUN_PROTOTYPE(("bpf_prog_test_run_opts", libbpf))
        self._function = function
        self._program_fd = program_fd
        self._options = _RunOptions()

    def run(self) -> None:
        """Run it once, on this CPU. Raises BpfError."""
        ctypes.memset(ctypes.byref(self._options), 0, ctypes.sizeof(self._options))
        self._options.size = ctypes.sizeof(self._options)
        status = self._run(self._program_fd, ctypes.byref(self._options))
        if status:
            raise _error(f"{self._function}: the program cannot be run", ctypes.get_errno() or -status)


class BpfObject(ClosedOnExit):
    """The programs and maps of one `.bpf.c` file.

    `defines` become preprocessor integers. `maps` says how user space reads maps: as records with the fields `key` and
    `value`, or, with keys of 32 bits, as values alone. Raises BpfError when bcc is missing, with the compiler's own
    message, or naming a map that was compiled with other sizes.
    """

    def __init__(
        self, source: Path, defines: Mapping[str, int], maps: Mapping[str, np.dtype[Any]] | None = None
    ) -> None:
        self._bcc = _import_bcc()
        self._source = source.name
        self._iterators: list[IteratorLink] = []
        text = "".join(_expanded(source, set())).encode()
        flags = [*_QUIET_FLAGS, f"-DLINUX_VERSION_CODE={_version_code(platform.release())}"]
        flags += [f"-D{name}={_c_integer(value)}" for name, value in defines.items()]
        with _stub_headers(), _captured_stderr() as log:
            try:
                self._module: Any = self._bcc.BPF(text=text, cflags=flags)
            except Exception as error:  # bcc raises bare Exception for everything
                raise BpfError(f"{source.name} does not compile: {_first_errors(log()) or error}") from error
        _release_compiler_memory()
        for name, layout in (maps or {}).items():
            self._check_sizes(name, layout)

    def _check_sizes(self, name: str, layout: np.dtype[Any]) -> None:
        key, value = (layout["key"], layout["value"]) if layout.names == ("key", "value") else (_KEY_DTYPE, layout)
        module = ctypes.c_void_p(self._module.module)
        compiled = tuple(
            size_of(module, name.encode())
            for size_of in (self._bcc.lib.bpf_table_key_size, self._bcc.lib.bpf_table_leaf_size)
        )
        if compiled != (key.itemsize, value.itemsize):
            self.close()
            raise BpfError(
                f"{self._source}: the map {name} has keys and values of {compiled[0]} and {compiled[1]} bytes, and is "
                f"read as if they had {key.itemsize} and {value.itemsize}"
            )

    def close(self) -> None:
        """Detach every program and free every map. Idempotent."""
        while self._iterators:
            self._iterators.pop().close()
        if self._module is not None:
            module, self._module = self._module, None
            module.cleanup()

    def attach_raw_tracepoint(self, tracepoint: str, function: str) -> None:
        """Run `function` at each hit of a raw tracepoint, after those that were attached to it before.

        Raises BpfError, with errno ENOENT when the kernel has no such tracepoint.
        """
        program_fd = self.load_raw_tracepoint(function)
        with _captured_stderr():
            link_fd = self._bcc.lib.bpf_attach_raw_tracepoint(program_fd, tracepoint.encode())
            code = ctypes.get_errno() if link_fd == -1 else -link_fd
        if link_fd < 0:
            raise _error(f"{self._source}: {function} cannot be attached to the tracepoint {tracepoint}", code)
        self._module.raw_tracepoint_fds[f"{tracepoint} {function}".encode()] = link_fd

    def load_raw_tracepoint(self, function: str) -> int:
        """Have the kernel check a raw tracepoint program; gives its file descriptor. Raises BpfError."""
        return self._load(function, self._bcc.BPF.RAW_TRACEPOINT)

    def detach_raw_tracepoint(self, tracepoint: str) -> None:
        """Stop every function that `attach_raw_tracepoint` started there, if any, the last one first.

        The maps stay readable.
        """
        links = self._module.raw_tracepoint_fds
        # One that takes what another leaves must not see events that nobody has left to it.
        for key in [key for key in reversed(links) if key.startswith(f"{tracepoint} ".encode())]:
            os.close(links.pop(key))

    def attach_iterator(self, function: str, *, map_name: str | None = None) -> IteratorLink:
        """Attach a `bpf_iter__*` function; one over a map's elements is told which map. Raises BpfError."""
        libbcc = self._bcc.lib
        program_fd = self._load(function, self._bcc.BPF.TRACING)
        libbcc.bcc_iter_attach.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
        info = None if map_name is None else (ctypes.c_uint32 * 4)(self.map_fd(map_name))
        size = 0 if info is None else ctypes.sizeof(info)
        with _captured_stderr():
            link_fd = libbcc.bcc_iter_attach(program_fd, info, size)
            code = ctypes.get_errno() if link_fd == -1 else -link_fd
        if link_fd < 0:
            raise _error(f"{self._source}: the iterator {function} cannot be attached", code)
        link = IteratorLink(libbcc, function, link_fd)
        self._iterators.append(link)
        return link

    def runnable(self, function: str) -> RunnableProgram:
        """Load a function that user space runs itself. Raises BpfError."""
        # libbcc carries libbpf's functions with it: looked up through it, they are of the same version.
        return RunnableProgram(self._bcc.lib, function, self._load(function, self._bcc.BPF.RAW_TRACEPOINT))

    def table(self, name: str) -> Any:
        """The bcc table of a map."""
        return self._module[name.encode()]

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map."""
        fd: int = self._bcc.lib.bpf_table_fd(self._module.module, name.encode())
        if fd < 0:
            raise BpfError(f"{self._source}: no map {name}")
        return fd

    def mmap(self, name: str, size_bytes: int) -> mmap.mmap:
        """An array map made with BPF_F_MMAPABLE, shared with the programs, rounded up to whole pages.

        The mapping lasts as long as anything refers to it, also after `close`.
        """
        whole = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            return mmap.mmap(self.map_fd(name), whole)
        except OSError as error:
            raise _error(f"{self._source}: the map {name} cannot be mapped", error.errno or 0) from error

    def view(self, name: str, entry: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """The first `count` entries of a map as `mmap` shares it."""
        return np.frombuffer(self.mmap(name, entry.itemsize * count), entry, count)

    def read_map(self, name: str, entry: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Every entry of a hash map as an array of records with the fields `key` and `value`.

        Entries that change during the read may be missed or seen twice, as the kernel says of its batch lookup.
        """
        libbcc = self._bcc.lib
        fd = self.map_fd(name)
        key_dtype, value_dtype = entry["key"], entry["value"]
        parts: list[npt.NDArray[np.void]] = []
        token = ctypes.c_uint32()
        started = False
        while True:
            keys, values = np.zeros(_BATCH_ENTRIES, key_dtype), np.zeros(_BATCH_ENTRIES, value_dtype)
            count = ctypes.c_uint32(_BATCH_ENTRIES)
            following = ctypes.c_uint32()
            ctypes.set_errno(0)
            status = libbcc.bpf_lookup_batch(
                fd,
                ctypes.byref(token) if started else None,
                ctypes.byref(following),
                keys.ctypes.data,
                values.ctypes.data,
                ctypes.byref(count),
            )
            code = ctypes.get_errno()
            if status and code != errno.ENOENT:
                raise _error(f"{self._source}: the map {name} cannot be read", code)
            part = np.zeros(count.value, entry)
            part["key"], part["value"] = keys[: count.value], values[: count.value]
            parts.append(part)
            if status:
                return np.concatenate(parts)
            token, started = following, True

    def update(self, name: str, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Write entries of a hash map, new or known. Raises BpfError when it is full."""
        fd = self.map_fd(name)
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        for index in range(len(keys)):
            key, value = keys.ctypes.data + index * keys.itemsize, values.ctypes.data + index * values.itemsize
            if self._bcc.lib.bpf_update_elem(fd, key, value, 0):
                raise _error(f"{self._source}: the map {name} cannot be written", ctypes.get_errno())

    def push(self, name: str, values: npt.NDArray[Any]) -> None:
        """Append values to a queue. Raises BpfError when it is full."""
        fd = self.map_fd(name)
        values = np.ascontiguousarray(values)
        for index in range(len(values)):
            if self._bcc.lib.bpf_update_elem(fd, None, values.ctypes.data + index * values.itemsize, 0):
                raise _error(f"{self._source}: the queue {name} cannot be written", ctypes.get_errno())

    def delete_keys(self, name: str, keys: npt.NDArray[Any]) -> None:
        """Remove entries of a hash map; those that are gone already are no error."""
        fd = self.map_fd(name)
        packed = np.ascontiguousarray(keys)
        for index in range(len(packed)):
            self._bcc.lib.bpf_delete_elem(fd, packed.ctypes.data + index * packed.itemsize)

    def read_per_cpu(self, name: str, value: np.dtype[Any], key: int = 0) -> npt.NDArray[Any]:
        """One entry of a per-CPU array: a value for each possible CPU, of a multiple of 8 bytes each."""
        cpus = self._bcc.table.get_possible_cpus()
        values = np.zeros(len(cpus), value)
        index = ctypes.c_uint32(key)
        if self._bcc.lib.bpf_lookup_elem(self.map_fd(name), ctypes.byref(index), values.ctypes.data):
            raise _error(f"{self._source}: the map {name} cannot be read", ctypes.get_errno())
        return values

    def map_bytes(self) -> int:
        """The memory of all maps, as the kernel counts it (/proc/PID/fdinfo, memlock)."""
        total = 0
        for number in range(self._bcc.lib.bpf_num_tables(self._module.module)):
            fd = self._bcc.lib.bpf_table_fd_id(self._module.module, number)
            text = Path(f"/proc/self/fdinfo/{fd}").read_text()
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("memlock:"))
        return total

    def program_infos(self, layout: ProgramInfoLayout) -> list[ProgramInfo]:
        """The kernel's own counters of each program; run count and time need kernel.bpf_stats_enabled."""
        return [self._program_info(name.decode(), function.fd, layout) for name, function in self._module.funcs.items()]

    def _program_info(self, function: str, fd: int, layout: ProgramInfoLayout) -> ProgramInfo:
        info = ctypes.create_string_buffer(layout.size_bytes)
        size = ctypes.c_uint32(len(info))
        if self._bcc.lib.bpf_obj_get_info(fd, info, ctypes.byref(size)):
            raise _error(f"{self._source}: the kernel says nothing about the program {function}", ctypes.get_errno())

        def field(offset_bytes: int | None, width_bytes: int) -> int:
            if offset_bytes is None:
                return 0
            return int.from_bytes(info.raw[offset_bytes : offset_bytes + width_bytes], "little")

        return ProgramInfo(
            function=function,
            program_id=field(layout.id, 4),
            recursion_misses=field(layout.recursion_misses, 8),
            run_seconds=field(layout.run_time_ns, 8) / 1e9,
        )

    def _load(self, function: str, program_type: int) -> int:
        with _captured_stderr() as log:
            try:
                fd: int = self._module.load_func(function.encode(), program_type).fd
            except Exception as error:  # bcc raises bare Exception for everything
                code = ctypes.get_errno()
                verifier = log()[-_MAX_LOG_CHARACTERS:].strip()
                message = f"{self._source}: the kernel refuses {function}: {os.strerror(code) if code else error}"
                if code in (errno.EPERM, errno.EACCES) and not verifier:
                    message += "; it takes the capabilities BPF and PERFMON, and a kernel that is not locked down"
                raise BpfError(f"{message}\n{verifier}" if verifier else message, code) from error
        return fd


def _expanded(path: Path, included: set[str]) -> Iterator[str]:
    """The lines of a source with those of its headers (`kernel/*.bpf.h`), each header once.

    The compiler could include them itself, but bcc finds programs and map accesses in the main file only.
    """
    yield f'#line 1 "{path.name}"\n'
    for number, line in enumerate(path.read_text().splitlines(keepends=True), start=1):
        match = _INCLUDE.match(line)
        if not match:
            yield line
        elif match[1] not in included:
            included.add(match[1])
            yield from _expanded(_HEADERS / match[1], included)
            yield f'#line {number + 1} "{path.name}"\n'


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise BpfError(
            f"bcc cannot be imported ({error}); install the distribution's python3-bpfcc "
            "(the package named bcc on PyPI is another project)"
        ) from error
    if not hasattr(bcc, "BPF"):
        raise BpfError(f"{bcc.__file__} is not the eBPF library; install the distribution's python3-bpfcc")
    return bcc


def _release_compiler_memory() -> None:
    """Give back what the compiler used: its heap, and its code, which is read again when it is needed again."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.malloc_trim(0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if _COMPILER_CODE.search(line):
            start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _error(message: str, code: int) -> BpfError:
    return BpfError(f"{message}: {os.strerror(code)}" if code else message, code)


def _c_integer(value: int) -> str:
    return f"{value}ULL" if value > _MAX_C_INT else str(value)


def _version_code(release: str) -> int:
    """LINUX_VERSION_CODE of a kernel release such as "6.12.9-amd64" (kernel: Makefile)."""
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if numbers is None:
        raise BpfError(f"the kernel release {release!r} does not start with a version")
    major, minor, patch = (int(number or 0) for number in numbers.groups())
    return (major << 16) + (minor << 8) + min(patch, 255)


def _first_errors(log: str) -> str:
    """The compiler's error lines, without the notes and the echoed source."""
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return "; ".join(lines or log.split("\n"))[:_MAX_LOG_CHARACTERS].strip()


@contextmanager
def _stub_headers() -> Iterator[None]:
    """Make bcc find our stub headers where it looks for the kernel's."""
    name = "BCC_KERNEL_SOURCE"
    before = os.environ.get(name)
    os.environ[name] = str(_STUB_HEADERS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Collect what C++ code writes to the stderr descriptor; gives a function that returns it so far."""
    sink = os.memfd_create("bcc-messages")
    kept = os.dup(2)
    os.dup2(sink, 2)
    try:
        yield lambda: os.pread(sink, _READ_BYTES, 0).decode(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
