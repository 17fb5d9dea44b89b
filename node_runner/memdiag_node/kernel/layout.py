"""Preprocessor defines from the running kernel's BTF: one table of names and fields for each eBPF source."""

from collections.abc import Iterable
from enum import IntEnum

from memdiag_node.kernel.btf import Btf

Field = tuple[str, str, str]
"""A define's name, the struct, and the path of the field in it."""


def offsets(btf: Btf, fields: Iterable[Field]) -> dict[str, int]:
    """The offset in bytes of each field. Raises BtfError naming the first one that this kernel lacks."""
    return {name: btf.offset_bytes(struct, path) for name, struct, path in fields}


def optional_offsets(btf: Btf, switch: str, fields: Iterable[Field]) -> dict[str, int]:
    """Like `offsets`, plus `switch` set to 1; empty if any field is missing: a feature is either complete or off."""
    fields = list(fields)
    if not all(btf.has_field(struct, path) for _, struct, path in fields):
        return {}
    return {switch: 1, **offsets(btf, fields)}


def enum_defines(prefix: str, numbers: type[IntEnum]) -> dict[str, int]:
    """The members of an enumeration, for C: `Kind.PIPE` becomes KIND_PIPE."""
    return {f"{prefix}_{member.name}": member.value for member in numbers}


def block_layout(btf: Btf) -> dict[str, int]:
    """Where a struct page has the head and the order of its block, in every form since kernel 5.15."""
    page_bytes = btf.size_bytes("page")
    compound = "compound_info" if btf.has_field("page", "compound_info") else "compound_head"
    if btf.has_field("folio", "_folio_order"):  # 6.1, c3a15bff46cb; it has _flags_1 too, without an order in it
        order = btf.offset_bytes("folio", "_folio_order")
    elif btf.has_field("folio", "_flags_1"):  # 6.6, ebc1baf5c9b4: the order is the low byte of the first tail's flags
        order = btf.offset_bytes("folio", "_flags_1")
    else:
        order = page_bytes + btf.offset_bytes("page", "compound_order")
    may_be_mask = {"COMPOUND_MAY_BE_MASK": 1} if compound == "compound_info" else {}
    return may_be_mask | {
        "STRUCT_PAGE_BYTES": page_bytes,
        "PAGE_FLAGS": btf.offset_bytes("page", "flags"),
        "PAGE_COMPOUND": btf.offset_bytes("page", compound),
        "PAGE_MAPPING": btf.offset_bytes("page", "mapping"),
        "PAGE_ORDER": order,
        "PAGE_READ_BYTES": max(page_bytes, order + 8),
        "PG_HEAD": btf.enum_value("PG_head"),
    }
