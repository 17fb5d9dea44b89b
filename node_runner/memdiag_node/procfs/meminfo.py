"""/proc/meminfo (kernel: fs/proc/meminfo.c, Documentation/filesystems/proc.rst)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"([A-Za-z0-9_()]+): +(\d{1,15})( kB)?")
_BYTES_PER_KB = 1024


@dataclass(frozen=True, slots=True)
class MemInfo:
    """The figures of the whole machine that a breakdown uses, in bytes.

    A figure that older kernels do not print is None if its absence does not mean zero.
    """

    mem_total_bytes: int
    mem_free_bytes: int
    lru_bytes: int
    """Pages on the LRU lists: anonymous and file, active and inactive, and unevictable."""
    anon_bytes: int
    shmem_bytes: int
    hugetlb_bytes: int
    slab_reclaimable_bytes: int
    slab_unreclaimable_bytes: int
    kernel_stack_bytes: int
    page_table_bytes: int
    secondary_page_table_bytes: int
    """Page tables of virtual machines and IOMMUs. Not counted before Linux 6.1."""
    vmalloc_bytes: int
    """0 before Linux 5.3, which did not sum it up."""
    percpu_bytes: int
    balloon_bytes: int | None
    """Since Linux 6.16."""


def parse_meminfo(text: bytes, *, source: str = "meminfo") -> MemInfo:
    """Parse /proc/meminfo. Unused fields may be present or not.

    Raises ProcFormatError for a line that is not `Name: number`, and if a field is missing that every kernel prints.
    """
    fields: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`Name: number`, with or without ` kB`")
        fields[match[1].decode()] = int(match[2]) * (_BYTES_PER_KB if match[3] else 1)

    def always(name: str) -> int:
        if name not in fields:
            raise ProcFormatError(source, 0, text, f"a line {name}")
        return fields[name]

    return MemInfo(
        mem_total_bytes=always("MemTotal"),
        mem_free_bytes=always("MemFree"),
        lru_bytes=sum(map(always, ("Active(anon)", "Inactive(anon)", "Active(file)", "Inactive(file)", "Unevictable"))),
        anon_bytes=always("AnonPages"),
        shmem_bytes=always("Shmem"),
        hugetlb_bytes=_hugetlb_bytes(fields),
        slab_reclaimable_bytes=always("SReclaimable"),
        slab_unreclaimable_bytes=always("SUnreclaim"),
        kernel_stack_bytes=always("KernelStack"),
        page_table_bytes=always("PageTables"),
        secondary_page_table_bytes=fields.get("SecPageTables", 0),
        vmalloc_bytes=always("VmallocUsed"),
        percpu_bytes=fields.get("Percpu", 0),
        balloon_bytes=fields.get("Balloon"),
    )


def _hugetlb_bytes(fields: Mapping[str, int]) -> int:
    """Return the pools of all page sizes (`Hugetlb`, since Linux 4.16), or of the default size on older kernels."""
    return fields.get("Hugetlb", fields.get("HugePages_Total", 0) * fields.get("Hugepagesize", 0))
