"""Hand-made BTF blobs with every kind of type, and damaged copies of them."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.kernel.btf import Btf, BtfError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT = range(1, 12)
FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(12, 20)


class Blob:
    """Types are added in order; the first has number 1."""

    def __init__(self) -> None:
        self._types, self._strings = b"", b"\0"
        self.count = 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        offset = len(self._strings)
        self._strings += text.encode() + b"\0"
        return offset

    def add(
        self, kind: int, name: str, size_or_type: int, trailer: bytes = b"", *, members: int = 0, flag: int = 0
    ) -> int:
        self._types += struct.pack("<III", self.string(name), flag << 31 | kind << 24 | members, size_or_type) + trailer
        self.count += 1
        return self.count

    def composite(self, kind: int, name: str, size: int, *members: tuple[str, int, int], flag: int = 0) -> int:
        """Members are (name, type, offset in bits, with the width of a bit field in the upper byte when `flag`)."""
        trailer = b"".join(struct.pack("<III", self.string(n), t, o) for n, t, o in members)
        return self.add(kind, name, size, trailer, members=len(members), flag=flag)

    def bytes(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self._strings))
        return header + self._types + self._strings


@pytest.fixture(scope="module")
def blob() -> bytes:
    """One type of every kind, and a struct that needs most of them."""
    b = Blob()
    integer = b.add(INT, "int", 4, struct.pack("<I", 32))
    pointer = b.add(PTR, "", integer)
    array = b.add(ARRAY, "", 0, struct.pack("<III", integer, integer, 10))
    inner = b.composite(STRUCT, "inner", 16, ("first", integer, 0), ("second", integer, 64))
    typedef = b.add(TYPEDEF, "inner_t", b.add(VOLATILE, "", b.add(CONST, "", b.add(RESTRICT, "", inner))))
    tagged = b.add(TYPE_TAG, "rcu", inner)
    union = b.composite(UNION, "", 16, ("as_inner", tagged, 0), ("as_number", integer, 0))
    inner_array = b.add(ARRAY, "", 0, struct.pack("<III", inner, integer, 4))
    b.composite(
        STRUCT, "outer", 200,
        ("number", integer, 0), ("by_typedef", typedef, 64), ("", union, 192), ("items", inner_array, 320),
        ("pointer", pointer, 832), ("array", array, 896),
    )  # fmt: skip
    b.composite(STRUCT, "bits", 4, ("low", integer, 3 << 24 | 0), ("odd", integer, 5 << 24 | 3), flag=1)
    b.add(ENUM, "colour", 4, struct.pack("<IiIi", b.string("RED"), 1, b.string("BLUE"), -7), members=2, flag=1)
    b.add(ENUM, "shade", 4, struct.pack("<II", b.string("DARK"), 0xFFFFFFFF), members=1)
    b.add(ENUM64, "large", 8, struct.pack("<III", b.string("HUGE"), 1, 2), members=1)
    b.add(ENUM64, "small", 8, struct.pack("<III", b.string("TINY"), 0xFFFFFFFF, 0xFFFFFFFF), members=1, flag=1)
    b.add(FWD, "elsewhere", 0)
    b.add(FLOAT, "double", 8)
    proto = b.add(FUNC_PROTO, "", integer, struct.pack("<II", b.string("argument"), integer), members=1)
    b.add(FUNC, "function", proto)
    variable = b.add(VAR, "variable", integer, struct.pack("<I", 1))
    b.add(DATASEC, ".data", 4, struct.pack("<III", variable, 0, 4), members=1)
    b.add(DECL_TAG, "tag", variable, struct.pack("<i", -1))
    b.composite(STRUCT, "last", 8, ("end", integer, 32))
    return b.bytes()


@pytest.mark.parametrize(
    ("structure", "path", "offset"),
    [
        ("outer", "number", 0),
        ("outer", "by_typedef", 8),
        ("outer", "by_typedef.second", 16),
        ("outer", "as_inner.second", 32),
        ("outer", "as_number", 24),
        ("outer", "items.second", 48),
        ("outer", "pointer", 104),
        ("bits", "low", 0),
        ("last", "end", 4),
    ],
)
def test_offset(blob: bytes, structure: str, path: str, offset: int) -> None:
    assert Btf.parse(blob).offset_bytes(structure, path) == offset


@pytest.mark.parametrize(
    ("structure", "path"),
    [
        ("outer", "nothing"),
        ("outer", "pointer.first"),
        ("nothing", "number"),
        ("bits", "odd"),
        ("outer", "number.first"),
    ],
)
def test_what_is_not_there_is_named(blob: bytes, structure: str, path: str) -> None:
    btf = Btf.parse(blob, source="vmlinux")
    with pytest.raises(BtfError, match=f"vmlinux.*{structure}"):
        btf.offset_bytes(structure, path)
    assert not btf.has_field(structure, path)


def test_sizes(blob: bytes) -> None:
    btf = Btf.parse(blob)
    assert (btf.size_bytes("outer"), btf.size_bytes("inner")) == (200, 16)
    assert btf.has_struct("last")
    assert not btf.has_struct("elsewhere")
    with pytest.raises(BtfError, match="no struct inner_t"):
        btf.size_bytes("inner_t")


@pytest.mark.parametrize(
    ("name", "value"), [("RED", 1), ("BLUE", -7), ("DARK", 0xFFFFFFFF), ("HUGE", 2 << 32 | 1), ("TINY", -1)]
)
def test_enumerators(blob: bytes, name: str, value: int) -> None:
    assert Btf.parse(blob).enum_value(name) == value


def test_an_unknown_enumerator_is_named(blob: bytes) -> None:
    with pytest.raises(BtfError, match="no enumerator GREEN"):
        Btf.parse(blob).enum_value("GREEN")


@given(data=st.data())
def test_a_damaged_blob_returns_an_answer_or_a_btf_error(blob: bytes, data: st.DataObject) -> None:
    damaged = bytearray(blob[: data.draw(st.integers(0, len(blob)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BtfError):
        btf = Btf.parse(bytes(damaged))
        btf.has_field("outer", "as_inner.second")
        btf.offset_bytes("outer", "items.second")
        btf.enum_value("HUGE")


def test_a_member_whose_name_is_beyond_the_strings_is_no_field() -> None:
    made = Blob()
    integer = made.add(INT, "int", 4, struct.pack("<I", 32))
    made.add(STRUCT, "damaged", 8, struct.pack("<III", 1 << 20, integer, 0), members=1)
    with pytest.raises(BtfError, match="struct damaged has no field any"):
        Btf.parse(made.bytes()).offset_bytes("damaged", "any")


def test_a_kernel_without_btf_is_reported(tmp_path: object) -> None:
    from pathlib import Path

    with pytest.raises(BtfError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.load(Path(str(tmp_path)))


class ModuleBlob(Blob):
    """The types of a module: their numbers and strings continue those of the kernel."""

    def __init__(self, kernel: Blob) -> None:
        super().__init__()
        self._types, self._strings, self._before = b"", b"\0", len(kernel._strings)
        self.count = kernel.count

    def string(self, text: str) -> int:
        offset = super().string(text)
        return offset + self._before if offset else 0


def test_a_module_adds_its_types_to_those_of_the_kernel(tmp_path: Path) -> None:
    kernel = Blob()
    integer = kernel.add(INT, "int", 4, struct.pack("<I", 32))
    inner = kernel.composite(STRUCT, "inner", 8, ("first", integer, 0), ("second", integer, 32))
    module = ModuleBlob(kernel)
    module.composite(STRUCT, "driver", 24, ("number", integer, 0), ("part", inner, 64))
    directory = tmp_path / "kernel/btf"
    directory.mkdir(parents=True)
    (directory / "vmlinux").write_bytes(kernel.bytes())
    (directory / "driver").write_bytes(module.bytes())
    loaded = Btf.load(tmp_path)
    assert not loaded.has_struct("driver")
    both = loaded.with_module("driver")
    assert both.offset_bytes("driver", "part.second") == 12
    assert both.offset_bytes("inner", "second") == 4
    assert loaded.with_module("missing") is loaded
    (directory / "driver").write_bytes(module.bytes()[:-3])
    with pytest.raises(BtfError, match="driver: the header describes more"):
        loaded.with_module("driver")
