"""Structure layouts and enumerators of the running kernel, from its BTF (kernel: Documentation/bpf/btf.rst).

Types stay in their binary form and are decoded on demand: a vmlinux has over a hundred thousand of them, and a
Python object for each would cost more memory than the whole trace.
"""

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Self

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")

_INT, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 3, 4, 5, 6
_TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 8, 9, 10, 11
_FUNC_PROTO, _VAR, _DATASEC = 13, 14, 15
_DECL_TAG, _TYPE_TAG, _ENUM64 = 17, 18, 19
_LAST_KIND = _ENUM64

_TRANSPARENT = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_TRAILER_BYTES = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_TRAILER_BYTES_EACH = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_BITS_PER_BYTE = 8


class BtfError(Exception):
    """BTF that cannot be read, or that lacks the requested type or field; the message says which."""


class Btf:
    """One BTF blob. Lookups are by C name; of several structs with the same name, one that has the field is used."""

    def __init__(self, data: bytes, source: str) -> None:
        self._data = data
        self._source = source
        self._directory: Path | None = None
        self._offsets = array("I", [0])  # where each type starts in `data`, by type id; id 0 is void
        self._structs: dict[int, list[int]] = {}  # string offset of the name -> type ids
        self._ids: dict[str, list[int]] = {}  # of the structs that were asked for, by name
        self._enums = array("I")  # type ids
        strings_start, strings_bytes = self._index()
        self._strings = data[strings_start : strings_start + strings_bytes]

    @classmethod
    def parse(cls, data: bytes, *, source: str = "vmlinux") -> Self:
        """Read a BTF blob. Raises BtfError naming `source` if it is truncated or malformed."""
        return cls(data, source)

    @classmethod
    def load(cls, sys_root: Path = Path("/sys")) -> Self:
        """Read the running kernel's BTF. Raises BtfError if the kernel has none (CONFIG_DEBUG_INFO_BTF)."""
        path = sys_root / "kernel/btf/vmlinux"
        try:
            loaded = cls.parse(path.read_bytes(), source=str(path))
        except OSError as error:
            raise BtfError(f"{path}: {error.strerror}: this kernel has no BTF (CONFIG_DEBUG_INFO_BTF)") from error
        loaded._directory = path.parent  # noqa: SLF001 - a constructor of its own class
        return loaded

    def with_module(self, name: str) -> Self:
        """This kernel's types together with those of a loaded module; itself if the module has no types of its own.

        A module's types continue the numbers and the strings of the kernel's (Documentation/bpf/btf.rst, split BTF), so
        both sections appended to those of the kernel are one blob. Raises BtfError if the module's BTF is malformed.
        """
        if self._directory is None:
            return self
        path = self._directory / name
        try:
            data = path.read_bytes()
        except OSError:  # built into the kernel, not loaded, or without BTF (CONFIG_DEBUG_INFO_BTF_MODULES)
            return self
        (own_types, own_strings), (types, strings) = _sections(self._data, self._source), _sections(data, str(path))
        header = _HEADER.pack(
            _MAGIC, 1, 0, _HEADER.size, 0, len(own_types) + len(types), len(own_types) + len(types),
            len(own_strings) + len(strings),
        )  # fmt: skip
        return type(self).parse(header + own_types + types + own_strings + strings, source=str(path))

    def _index(self) -> tuple[int, int]:
        data = self._data
        position, end, strings_start, strings_bytes = _places(data, self._source)
        while position < end:
            if position + _TYPE.size > end:
                raise BtfError(f"{self._source}: type {len(self._offsets)} is cut off")
            name, info, _ = _TYPE.unpack_from(data, position)
            kind = info >> 24 & 0x1F
            if not 0 < kind <= _LAST_KIND:
                raise BtfError(f"{self._source}: type {len(self._offsets)} has the unknown kind {kind}")
            if kind in (_STRUCT, _UNION) and name:
                self._structs.setdefault(name, []).append(len(self._offsets))
            elif kind in (_ENUM, _ENUM64):
                self._enums.append(len(self._offsets))
            self._offsets.append(position)
            position += _TYPE.size + _TRAILER_BYTES.get(kind, 0) + _TRAILER_BYTES_EACH.get(kind, 0) * (info & 0xFFFF)
        if position != end:
            raise BtfError(f"{self._source}: type {len(self._offsets) - 1} extends beyond the end of the types")
        return strings_start, strings_bytes

    def offset_bytes(self, struct: str, path: str) -> int:
        """The offset of a field in a struct or union, in bytes. `path` may be dotted ("sk_receive_queue.qlen").

        Anonymous members are searched, and an array stands for its first element. Raises BtfError naming struct and
        field if there is no such field, or if it is a bit field that starts inside a byte.
        """
        for type_id in self._struct_ids(struct):
            bits = self._offset_bits(type_id, path.split("."))
            if bits is not None:
                if bits % _BITS_PER_BYTE:
                    raise BtfError(f"{self._source}: {struct}.{path} is a bit field at bit {bits}")
                return bits // _BITS_PER_BYTE
        raise BtfError(f"{self._source}: struct {struct} has no field {path}")

    def bit_offset(self, struct: str, path: str) -> int:
        """The offset of a field in a struct, in bits; bit fields included. Raises BtfError like `offset_bytes`."""
        for type_id in self._struct_ids(struct):
            bits = self._offset_bits(type_id, path.split("."))
            if bits is not None:
                return bits
        raise BtfError(f"{self._source}: struct {struct} has no field {path}")

    def has_field(self, struct: str, path: str) -> bool:
        """Whether this kernel has the struct with the field."""
        try:
            self.offset_bytes(struct, path)
        except BtfError:
            return False
        return True

    def has_struct(self, struct: str) -> bool:
        """Whether this kernel has a struct or union of that name."""
        return bool(self._ids_by_name(struct))

    def size_bytes(self, struct: str) -> int:
        """The size of a struct or union. Raises BtfError naming it if there is none."""
        return self._decode(self._struct_ids(struct)[0])[3]

    def enum_value(self, name: str) -> int:
        """The value of an enumerator of any enum ("PG_head"). Raises BtfError naming it if there is none."""
        wanted = self._string_offsets(name)
        for type_id in self._enums:
            kind, flag, count, _ = self._decode(type_id)
            position = self._offsets[type_id] + _TYPE.size
            layout = ("<Ii" if flag else "<II") if kind == _ENUM else "<III"
            for entry in struct.iter_unpack(layout, self._data[position : position + struct.calcsize(layout) * count]):
                if entry[0] in wanted:
                    return self._enumerator(kind, flag, entry)
        raise BtfError(f"{self._source}: no enumerator {name}")

    def has_enumerator(self, name: str) -> bool:
        """Whether any enum of this kernel has the enumerator."""
        try:
            self.enum_value(name)
        except BtfError:
            return False
        return True

    @staticmethod
    def _enumerator(kind: int, signed: int, entry: tuple[int, ...]) -> int:
        if kind == _ENUM:
            return entry[1]
        value = entry[2] << 32 | entry[1]
        return value - (1 << 64) if signed and value >> 63 else value

    def _string_offsets(self, name: str) -> set[int]:
        pattern = b"\0" + name.encode() + b"\0"
        found: set[int] = set()
        position = self._strings.find(pattern)
        while position >= 0:
            found.add(position + 1)
            position = self._strings.find(pattern, position + 1)
        return found

    def _ids_by_name(self, name: str) -> list[int]:
        if name not in self._ids:
            offsets = sorted(self._string_offsets(name))
            self._ids[name] = [type_id for offset in offsets for type_id in self._structs.get(offset, [])]
        return self._ids[name]

    def _struct_ids(self, name: str) -> list[int]:
        ids = self._ids_by_name(name)
        if not ids:
            raise BtfError(f"{self._source}: no struct {name}")
        return ids

    def _decode(self, type_id: int) -> tuple[int, int, int, int]:
        """Kind, kind flag, number of members, and size or referred type."""
        if not 0 < type_id < len(self._offsets):
            return 0, 0, 0, 0
        _, info, size = _TYPE.unpack_from(self._data, self._offsets[type_id])
        return info >> 24 & 0x1F, info >> 31, info & 0xFFFF, size

    def _members(self, type_id: int) -> Iterator[tuple[int, int, int]]:
        """Name's string offset, type id and bit offset of each member."""
        _, flag, count, _ = self._decode(type_id)
        position = self._offsets[type_id] + _TYPE.size
        for name, member_type, offset in struct.iter_unpack("<III", self._data[position : position + 12 * count]):
            yield name, member_type, offset & 0xFFFFFF if flag else offset

    def _resolve(self, type_id: int) -> int:
        """The type behind typedefs, qualifiers and array dimensions; 0 if there is none."""
        for _ in range(len(self._offsets)):
            kind, _, _, referred = self._decode(type_id)
            if kind in _TRANSPARENT:
                type_id = referred
            elif kind == _ARRAY:
                (type_id,) = struct.unpack_from("<I", self._data, self._offsets[type_id] + _TYPE.size)
            else:
                return type_id
        raise BtfError(f"{self._source}: type {type_id} refers to itself")

    def _offset_bits(self, type_id: int, path: list[str], depth: int = 0) -> int | None:
        type_id = self._resolve(type_id)
        if self._decode(type_id)[0] not in (_STRUCT, _UNION) or depth > 64:  # noqa: PLR2004 - no C type nests that deep; a malformed blob may loop
            return None
        wanted = path[0].encode() + b"\0"  # compared with the few members: a search of all strings takes milliseconds
        for name, member_type, bits in self._members(type_id):
            rest: int | None = None
            if name and self._strings.startswith(wanted, name):
                rest = self._offset_bits(member_type, path[1:], depth + 1) if path[1:] else 0
            elif not name or self._strings.startswith(b"\0", name):
                rest = self._offset_bits(member_type, path, depth + 1)
            if rest is not None:
                return bits + rest
        return None

    def _name_at(self, offset: int) -> bytes:
        return self._strings[offset : self._strings.find(b"\0", offset)]


def _places(data: bytes, source: str) -> tuple[int, int, int, int]:
    """Start and end of the types, start and length of the strings. Raises BtfError naming `source`."""
    if len(data) < _HEADER.size:
        raise BtfError(f"{source}: {len(data)} bytes are too few for a BTF header")
    magic, _, _, header_bytes, types_offset, types_bytes, strings_offset, strings_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise BtfError(f"{source}: magic {magic:#06x} is not BTF in this machine's byte order")
    start = header_bytes + types_offset
    strings_start = header_bytes + strings_offset
    if start + types_bytes > len(data) or strings_start + strings_bytes > len(data):
        raise BtfError(f"{source}: the header describes more than its {len(data)} bytes")
    return start, start + types_bytes, strings_start, strings_bytes


def _sections(data: bytes, source: str) -> tuple[bytes, bytes]:
    """The types and the strings. Raises BtfError naming `source`."""
    start, end, strings_start, strings_bytes = _places(data, source)
    return data[start:end], data[strings_start : strings_start + strings_bytes]
