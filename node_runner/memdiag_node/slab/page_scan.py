"""Slabs by the types of struct pages, read in blocks by a program (slabs.bpf.c): faster than /proc/kpageflags."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.per_cpu import PER_CPU_MAPS, per_cpu_defines
from memdiag_node.kernel.symbols import SYMBOL_DEFINES, SYMBOL_MAPS
from memdiag_node.slab.slabs import ReadPiece, described

_SOURCE = Path(__file__).with_name("slabs.bpf.c")
_CHUNKS, _CHUNK_PAGES = 32, 64  # a chunk fills 4 KiB of the array: it is there as a whole, or a hole as a whole
_FRAMES = _CHUNKS * _CHUNK_PAGES
_STRUCT_PAGE_BYTES = 64
_FLAG_BITS = 32  # an enumerator PG_slab that is larger is a page type of Linux 6.10 and 6.11
_ORDER_SHIFT = 56

_HEAD_DTYPE = np.dtype([("place", "<u8"), ("cache", "<u8"), ("freelist", "<u8"), ("counters", "<u8")])
_RUN_DTYPE = np.dtype([("first_page", "<u8"), ("count", "<u8")])
_DEFINES = (
    *("STRUCT_PAGE_BYTES", "PAGE_FLAGS", "PAGE_COMPOUND", "PAGE_ORDER", "PG_HEAD"),
    *("SLAB_CACHE", "SLAB_FREELIST", "SLAB_COUNTERS", "SLAB_TYPE", "SLAB_BIT", "PAGE_TYPE"),
)


def page_scan_layout(btf: Btf) -> dict[str, int]:
    """How this kernel marks the struct page that heads a slab, with HAS_PAGE_SCAN; empty if that is not known."""
    if btf.size_bytes("page") != _STRUCT_PAGE_BYTES:
        return {}
    if btf.has_enumerator("PGTY_slab") and btf.has_field("page", "page_type"):
        page_type = btf.offset_bytes("page", "page_type")
        return {"HAS_PAGE_SCAN": 1, "SLAB_TYPE": btf.enum_value("PGTY_slab"), "PAGE_TYPE": page_type}
    bit = btf.enum_value("PG_slab") if btf.has_enumerator("PG_slab") else _FLAG_BITS
    return {"HAS_PAGE_SCAN": 1, "SLAB_BIT": bit} if 0 <= bit < _FLAG_BITS else {}


def load_slab_programs(at: Mapping[str, int], cpus: Sequence[int]) -> BpfObject:
    """The programs of slabs.bpf.c; close them after use. Raises BpfError if they do not compile.

    `cpus` are the online ones, or all possible ones. The kernel verifies the programs here, so that a census need not
    wait for it.
    """
    defines = {
        "CHUNKS": _CHUNKS,
        "CHUNK_PAGES": _CHUNK_PAGES,
        "ORDER_SHIFT": _ORDER_SHIFT,
        **{name: at[name] for name in _DEFINES if name in at},
    }
    bpf = BpfObject(
        _SOURCE,
        defines | per_cpu_defines(cpus) | SYMBOL_DEFINES,
        PER_CPU_MAPS | SYMBOL_MAPS | {"run": _RUN_DTYPE, "heads": _HEAD_DTYPE},
    )
    for function in ("scan", "locate"):
        with suppress(BpfError):  # refused again, and handled, where it is used
            bpf.runnable(function)
    return bpf


def page_scanner(
    bpf: BpfObject, at: Mapping[str, int], cache_addresses: npt.NDArray[np.uint64], *, first_page: int
) -> ReadPiece:
    """Finds slabs by their struct pages; frames are read in multiples of 2,048. `piece_reader` has the parameters.

    Raises BpfError if the kernel refuses the program.
    """
    program = bpf.runnable("scan")
    this, found = bpf.view("run", _RUN_DTYPE, 1), bpf.view("heads", _HEAD_DTYPE, _FRAMES)

    def read_run(first: int) -> npt.NDArray[np.void]:
        this["first_page"] = (first_page + first * at["STRUCT_PAGE_BYTES"]) % (1 << 64)
        program.run()
        heads: npt.NDArray[np.void] = found[: int(this["count"][0])].copy()
        heads["place"] += np.uint64(first)
        return heads

    def read_piece(first: int, frames: int) -> npt.NDArray[np.void]:
        heads = np.concatenate([read_run(start) for start in range(first, first + frames, _FRAMES)])
        order = heads["place"] >> np.uint64(_ORDER_SHIFT)
        frame = heads["place"] & np.uint64((1 << _ORDER_SHIFT) - 1)
        fields = (heads["cache"], heads["freelist"], heads["counters"])
        return described(frame, *fields, order, cache_addresses=cache_addresses)

    return read_piece
