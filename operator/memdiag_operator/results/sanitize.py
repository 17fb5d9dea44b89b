"""Text from a node, made safe to publish: no control characters, no kernel addresses.

Processes on the node choose their names, paths and addresses; terminals interpret control characters
(kubernetes/kubernetes#101695), and a kernel address helps to attack the kernel.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

ADDRESS_PLACEHOLDER = "[address]"

_ASCII_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Kernel addresses: x86-64 with 5-level paging from ff00... on (direct map ff11, vmalloc ffa0, vmemmap ffd4), arm64 with
# 52 bits from fff0..., all else from ffff... on. Longer hexadecimal words are hashes and ids.
_KERNEL_ADDRESS = re.compile(r"(?<![0-9a-f])(?:0x)?ff[0-9a-f]{14}(?![0-9a-f])", re.IGNORECASE)


def clean_text(text: str) -> str:
    """`text` on one line, without control characters and kernel addresses; never longer than before."""
    visible = _ASCII_CONTROL.sub("", text) if text.isascii() else "".join(map(_visible, text))
    return _KERNEL_ADDRESS.sub(ADDRESS_PLACEHOLDER, visible)


def _visible(character: str) -> str:
    """Empty for control, format (bidirectional overrides, zero width), surrogate, private and line separators."""
    if unicodedata.category(character) == "Zs":
        return " "  # spaces of any width look the same
    return character if character.isprintable() else ""


def clean_json(value: Any) -> Any:
    """`value`, plain JSON, with every string in it cleaned, including keys of mappings."""
    match value:
        case str():
            return clean_text(value)
        case dict():
            return {clean_text(key): clean_json(inner) for key, inner in value.items()}
        case list():
            return [clean_json(inner) for inner in value]
        case _:
            return value


def clip_fields(value: Any, limits: Mapping[str, int]) -> Any:
    """`value`, plain JSON, with the strings of these fields cut to their limits, wherever they are."""
    match value:
        case dict():
            return {
                key: clip(inner, limits[key])
                if key in limits and isinstance(inner, str)
                else clip_fields(inner, limits)
                for key, inner in value.items()
            }
        case list():
            return [clip_fields(inner, limits) for inner in value]
        case _:
            return value


def clip(text: str, limit: int) -> str:
    """`text` cut to `limit` characters, the cut marked by an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
