"""Which process has an anonymous page, by the kernel's reverse map (mm/rmap.c).

A page refers to the anon_vma of the process that first wrote to it. After a fork, several processes may have areas in
one anon_vma: any of them is returned. The objects can go while they are read: then a page has no process here.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.kernel.page_mapping import ANONYMOUS, PAGE_MAPPING_FIELD, is_anonymous
from memdiag_node.procfs.text import printable

_FIELDS: tuple[Field, ...] = (
    PAGE_MAPPING_FIELD,
    ("ANON_VMA_ROOT", "anon_vma", "rb_root.rb_root.rb_node"),
    ("ANON_VMA_NODE", "anon_vma_chain", "rb"),
    ("ANON_VMA_AREA", "anon_vma_chain", "vma"),
    ("AREA_MEMORY", "vm_area_struct", "vm_mm"),
    ("MEMORY_OWNER", "mm_struct", "owner"),  # with CONFIG_MEMCG
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_COMM", "task_struct", "comm"),
)
_PID_BITS = (1 << 32) - 1
_MAX_PID = 1 << 22
_COMM_BYTES = 16  # TASK_COMM_LEN


@dataclass(frozen=True, slots=True)
class Mapper:
    """A process that maps an anonymous page."""

    pid: int
    comm: str


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `mappers` needs; empty if this kernel lacks one of them."""
    return optional_offsets(btf, "HAS_REVERSE_MAP", _FIELDS)


def mappers(memory: WordReader, at: Mapping[str, int], pages: npt.NDArray[np.uint64]) -> list[Mapper | None]:
    """The process of each page, given the addresses of their struct pages; None where it is not known."""
    if "HAS_REVERSE_MAP" not in at or not len(pages):
        return [None] * len(pages)
    mapping = _follow(memory, pages, at["PAGE_MAPPING"])
    anon_vma = np.where(is_anonymous(mapping), mapping - np.uint64(ANONYMOUS), np.uint64(0))
    node = _follow(memory, anon_vma, at["ANON_VMA_ROOT"])
    chain = np.where(node != 0, node - np.uint64(at["ANON_VMA_NODE"]), np.uint64(0))
    task = chain
    for name in ("ANON_VMA_AREA", "AREA_MEMORY", "MEMORY_OWNER"):
        task = _follow(memory, task, at[name])
    pids = (_follow(memory, task, at["TASK_TGID"]) & np.uint64(_PID_BITS)).tolist()
    names = [_follow(memory, task, at["TASK_COMM"] + at_bytes) for at_bytes in range(0, _COMM_BYTES, 8)]
    found = np.stack(names, axis=1)
    return [
        Mapper(pid, printable(words.tobytes().split(b"\0")[0], _COMM_BYTES)) if 0 < pid <= _MAX_PID else None
        for pid, words in zip(pids, found, strict=True)
    ]


def _follow(memory: WordReader, objects: npt.NDArray[np.uint64], offset_bytes: int) -> npt.NDArray[np.uint64]:
    """The word at an offset of each object; 0 for no object, and where it cannot be read."""
    found: npt.NDArray[np.uint64] = np.zeros(len(objects), "<u8")
    exists = objects != 0
    found[exists] = memory.peek(objects[exists] + np.uint64(offset_bytes))
    return found
