"""Reduce a kernel's BTF to the types that the node runner reads: a fixture for tests, some ten kilobytes large.

    .venv/bin/python tools/cut_btf.py VMLINUX tests/fixtures/btf/linux-5.10-x86_64.btf

VMLINUX is /sys/kernel/btf/vmlinux of a running kernel, or an ELF file such as the one that the kernel's
scripts/extract-vmlinux extracts from a distribution's vmlinuz. The output is reproducible for a given input and runner.
"""

import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from memdiag_node.cgroups.layout import account_layout
from memdiag_node.holders.registry import holder_fields
from memdiag_node.kernel.btf import Btf, BtfError
from memdiag_node.kernel.memory import memory_layout
from memdiag_node.kernel.programs import ProgramInfoLayout
from memdiag_node.kernel_objects import object_fields
from memdiag_node.sockets.source import socket_defines, user_layout
from memdiag_node.trace.pages.page_trace import _layout as trace_defines
from memdiag_node.walker.walker import queue_defines

LAYOUTS: tuple[Callable[[Btf], object], ...] = (
    memory_layout,
    socket_defines,
    user_layout,
    queue_defines,
    holder_fields,
    trace_defines,
    account_layout,
    object_fields,
    ProgramInfoLayout.of,
    lambda btf: [btf.has_struct(f"bpf_iter__{name}") for name in ("task_file", "bpf_map")],  # of the preflight
)

_ELF_MAGIC = b"\x7fELF"
_PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD = 2, 3, 4, 5, 6, 7
_REFERRING = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
_ENUM64 = 19
_TRAILER_BYTES = {1: 4, _ARRAY: 12}
_MEMBER_BYTES = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _ENUM64: 12}
_TYPE = struct.Struct("<III")
_HEADER = struct.Struct("<HBBIIIII")


class CuttableBtf(Btf):
    """Records the lookups, and writes a blob that gives the same results for them."""

    def __init__(self, data: bytes, source: str) -> None:
        super().__init__(data, source)
        self._asked_structs: set[str] = set()
        self._asked_enumerators: set[str] = set()

    def _ids_by_name(self, name: str) -> list[int]:
        self._asked_structs.add(name)
        return super()._ids_by_name(name)

    def enum_value(self, name: str) -> int:
        """As in Btf; records the name."""
        self._asked_enumerators.add(name)
        return super().enum_value(name)

    def cut(self) -> bytes:
        """A blob of the types that were looked up and their members; pointers have no target."""
        kept = sorted(self._with_contents(self._asked_types()))
        numbers = {old: new for new, old in enumerate(kept, start=1)}
        strings, places = bytearray(b"\0"), {0: 0}

        def text(offset: int) -> int:
            if offset not in places:
                places[offset] = len(strings)
                strings.extend(self._name_at(offset) + b"\0")
            return places[offset]

        types = b"".join(self._renumbered(old, numbers, text) for old in kept)
        header = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings))
        return header + types + bytes(strings)

    def _asked_types(self) -> Iterable[int]:
        for name in self._asked_structs:
            yield from super()._ids_by_name(name)
        wanted = set[int]().union(*map(self._string_offsets, self._asked_enumerators))
        for type_id in self._enums:
            if wanted & {name for name, *_ in struct.iter_unpack(self._entry(type_id), self._trailer(type_id))}:
                yield type_id

    def _with_contents(self, types: Iterable[int]) -> set[int]:
        found, waiting = set[int](), list(types)
        while waiting:
            type_id = waiting.pop()
            if type_id and type_id not in found:
                found.add(type_id)
                waiting += self._contents(type_id)
        return found

    def _contents(self, type_id: int) -> list[int]:
        kind, _, _, referred = self._decode(type_id)
        if kind in (_STRUCT, _UNION):
            return [member for _, member, _ in self._members(type_id)]
        if kind == _ARRAY:
            return list(struct.unpack("<III", self._trailer(type_id)))[:2]
        return [referred] if kind in _REFERRING else []

    def _entry(self, type_id: int) -> str:
        return "<II" if self._decode(type_id)[0] == _ENUM else "<III"

    def _trailer(self, type_id: int) -> bytes:
        kind, _, count, _ = self._decode(type_id)
        start = self._offsets[type_id] + _TYPE.size
        return self._data[start : start + _TRAILER_BYTES.get(kind, 0) + count * _MEMBER_BYTES.get(kind, 0)]

    def _renumbered(self, type_id: int, numbers: dict[int, int], text: Callable[[int], int]) -> bytes:
        kind = self._decode(type_id)[0]
        name, info, size = _TYPE.unpack_from(self._data, self._offsets[type_id])
        trailer = self._trailer(type_id)
        if kind == _PTR:
            size = 0
        elif kind in _REFERRING:
            size = numbers.get(size, 0)
        if kind in (_STRUCT, _UNION):
            members = struct.iter_unpack("<III", trailer)
            trailer = b"".join(_TYPE.pack(text(member), numbers.get(of, 0), offset) for member, of, offset in members)
        elif kind == _ARRAY:
            element, index, count = struct.unpack("<III", trailer)
            trailer = _TYPE.pack(numbers.get(element, 0), numbers.get(index, 0), count)
        elif kind in (_ENUM, _ENUM64):
            entry = self._entry(type_id)
            values = struct.iter_unpack(entry, trailer)
            trailer = b"".join(struct.pack(entry, text(member), *value) for member, *value in values)
        return _TYPE.pack(text(name), info, size) + trailer


def btf_of(data: bytes) -> bytes:
    """The BTF of an ELF file; any other data is returned unchanged."""
    if not data.startswith(_ELF_MAGIC):
        return data
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry_bytes, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", data, table + index * entry_bytes) for index in range(count)]
    for name, _, _, _, offset, size in sections:
        if data.startswith(b".BTF\0", sections[names][4] + name):
            return data[offset : offset + size]
    raise BtfError("the ELF file has no section .BTF")


def main() -> None:
    """Read the BTF, make the runner's lookups, and write the result."""
    source, target = map(Path, sys.argv[1:])
    btf = CuttableBtf.parse(btf_of(source.read_bytes()), source=source.name)
    for layout in LAYOUTS:
        layout(btf)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(btf.cut())


if __name__ == "__main__":
    main()
