"""Loading and attaching the programs of a `.bpf.c` file, and reading and writing its maps.

Every link to the kernel is a file descriptor of this process and nothing is pinned, so the kernel itself removes
programs and maps when the process exits, however it exits. `BpfObject.close` removes them earlier.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.compiler import captured_stderr, compile_source, import_bcc
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.programs import IteratorLink, ProgramInfo, ProgramInfoLayout, RunnableProgram
from memdiag_node.resource import Resource

_MAX_LOG_CHARACTERS = 2_000
_BATCH_ENTRIES = 4_096
_KEY_DTYPE = np.dtype("<u4")


class BpfObject(Resource):
    """The programs and maps of one `.bpf.c` file.

    `defines` become preprocessor integers. `maps` says how user space reads maps: as records with the fields `key` and
    `value`, or, with keys of 32 bits, as values alone. Raises BpfError if bcc is missing, with the compiler's own
    message, or naming a map that was compiled with different sizes.
    """

    def __init__(
        self, source: Path, defines: Mapping[str, int], maps: Mapping[str, np.dtype[Any]] | None = None
    ) -> None:
        self._bcc = import_bcc()
        self._source = source.name
        with self._opening() as parts:
            self._module: Any = compile_source(source, defines)
            parts.callback(self._unload)
            for name, layout in (maps or {}).items():
                self._check_sizes(name, layout)

    def _unload(self) -> None:
        module, self._module = self._module, None
        module.cleanup()

    def _check_sizes(self, name: str, layout: np.dtype[Any]) -> None:
        key, value = (layout["key"], layout["value"]) if layout.names == ("key", "value") else (_KEY_DTYPE, layout)
        module = ctypes.c_void_p(self._module.module)
        compiled = tuple(
            size_of(module, name.encode())
            for size_of in (self._bcc.lib.bpf_table_key_size, self._bcc.lib.bpf_table_leaf_size)
        )
        if compiled != (key.itemsize, value.itemsize):
            raise BpfError(
                f"{self._source}: the map {name} has keys and values of {compiled[0]} and {compiled[1]} bytes, but is "
                f"read as if they had {key.itemsize} and {value.itemsize}"
            )

    def attach_raw_tracepoint(self, tracepoint: str, function: str) -> None:
        """Run `function` at each hit of a raw tracepoint, after the functions attached to it before.

        Raises BpfError, with errno ENOENT if the kernel has no such tracepoint.
        """
        program_fd = self.load_raw_tracepoint(function)
        with captured_stderr():
            link_fd = self._bcc.lib.bpf_attach_raw_tracepoint(program_fd, tracepoint.encode())
            code = ctypes.get_errno() if link_fd == -1 else -link_fd
        if link_fd < 0:
            raise BpfError.of(f"{self._source}: {function} cannot be attached to the tracepoint {tracepoint}", code)
        self._module.raw_tracepoint_fds[f"{tracepoint} {function}".encode()] = link_fd

    def load_raw_tracepoint(self, function: str) -> int:
        """Load a raw tracepoint program, which the kernel verifies; returns its file descriptor. Raises BpfError."""
        return self._load(function, self._bcc.BPF.RAW_TRACEPOINT)

    def detach_raw_tracepoint(self, tracepoint: str) -> None:
        """Detach all functions that `attach_raw_tracepoint` attached to the tracepoint, the last one first.

        The maps stay readable.
        """
        links = self._module.raw_tracepoint_fds
        # A function that handles what another one left must not run without that one.
        for key in [key for key in reversed(links) if key.startswith(f"{tracepoint} ".encode())]:
            os.close(links.pop(key))

    def attach_iterator(self, function: str, *, map_name: str | None = None) -> IteratorLink:
        """Attach a `bpf_iter__*` function; `map_name` is for an iterator over a map's elements. Raises BpfError."""
        libbcc = self._bcc.lib
        program_fd = self._load(function, self._bcc.BPF.TRACING)
        libbcc.bcc_iter_attach.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32]
        info = None if map_name is None else (ctypes.c_uint32 * 4)(self.map_fd(map_name))
        size = 0 if info is None else ctypes.sizeof(info)
        with captured_stderr():
            link_fd = libbcc.bcc_iter_attach(program_fd, info, size)
            code = ctypes.get_errno() if link_fd == -1 else -link_fd
        if link_fd < 0:
            raise BpfError.of(f"{self._source}: the iterator {function} cannot be attached", code)
        link = IteratorLink(libbcc, function, link_fd)
        self._parts.callback(link.close)
        return link

    def runnable(self, function: str) -> RunnableProgram:
        """Load a function that user space runs itself. Raises BpfError."""
        # libbcc includes libbpf's functions: looked up through it, they are of the same version.
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
        """An array map created with BPF_F_MMAPABLE, shared with the programs, rounded up to whole pages.

        The mapping lasts as long as anything refers to it, also after `close`.
        """
        whole = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            return mmap.mmap(self.map_fd(name), whole)
        except OSError as error:
            raise BpfError.of(f"{self._source}: the map {name} cannot be mapped", error.errno or 0) from error

    def view(self, name: str, entry: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        """The first `count` entries of a map as `mmap` shares it."""
        return np.frombuffer(self.mmap(name, entry.itemsize * count), entry, count)

    def read_map(self, name: str, entry: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Every entry of a hash map as an array of records with the fields `key` and `value`.

        Entries that change during the read may be missed or returned twice, like in the kernel's batch lookup.
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
                raise BpfError.of(f"{self._source}: the map {name} cannot be read", code)
            part = np.zeros(count.value, entry)
            part["key"], part["value"] = keys[: count.value], values[: count.value]
            parts.append(part)
            if status:
                return np.concatenate(parts)
            token, started = following, True

    def update(self, name: str, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
        """Write entries of a hash map, new or existing. Raises BpfError if it is full."""
        fd = self.map_fd(name)
        keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
        for index in range(len(keys)):
            key, value = keys.ctypes.data + index * keys.itemsize, values.ctypes.data + index * values.itemsize
            if self._bcc.lib.bpf_update_elem(fd, key, value, 0):
                raise BpfError.of(f"{self._source}: the map {name} cannot be written", ctypes.get_errno())

    def push(self, name: str, values: npt.NDArray[Any]) -> None:
        """Append values to a queue. Raises BpfError if it is full."""
        fd = self.map_fd(name)
        values = np.ascontiguousarray(values)
        for index in range(len(values)):
            if self._bcc.lib.bpf_update_elem(fd, None, values.ctypes.data + index * values.itemsize, 0):
                raise BpfError.of(f"{self._source}: the queue {name} cannot be written", ctypes.get_errno())

    def delete_keys(self, name: str, keys: npt.NDArray[Any]) -> None:
        """Remove entries of a hash map; missing entries are ignored."""
        fd = self.map_fd(name)
        packed = np.ascontiguousarray(keys)
        for index in range(len(packed)):
            self._bcc.lib.bpf_delete_elem(fd, packed.ctypes.data + index * packed.itemsize)

    def read_per_cpu(self, name: str, value: np.dtype[Any], key: int = 0) -> npt.NDArray[Any]:
        """One entry of a per-CPU array: a value for each possible CPU, each a multiple of 8 bytes."""
        cpus = self._bcc.table.get_possible_cpus()
        values = np.zeros(len(cpus), value)
        index = ctypes.c_uint32(key)
        if self._bcc.lib.bpf_lookup_elem(self.map_fd(name), ctypes.byref(index), values.ctypes.data):
            raise BpfError.of(f"{self._source}: the map {name} cannot be read", ctypes.get_errno())
        return values

    def map_bytes(self) -> int:
        """The memory used by all maps, as counted by the kernel (/proc/PID/fdinfo, memlock)."""
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
            raise BpfError.of(
                f"{self._source}: the kernel returned no information about the program {function}", ctypes.get_errno()
            )

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
        with captured_stderr() as log:
            try:
                fd: int = self._module.load_func(function.encode(), program_type).fd
            except Exception as error:  # bcc raises bare Exception for everything
                code = ctypes.get_errno()
                verifier = log()[-_MAX_LOG_CHARACTERS:].strip()
                message = f"{self._source}: the kernel refuses {function}: {os.strerror(code) if code else error}"
                if code in (errno.EPERM, errno.EACCES) and not verifier:
                    message += "; this requires the capabilities BPF and PERFMON, and a kernel that is not locked down"
                raise BpfError(f"{message}\n{verifier}" if verifier else message, code) from error
        return fd
