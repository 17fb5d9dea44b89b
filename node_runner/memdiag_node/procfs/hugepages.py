"""Pools of huge pages in sysfs (kernel: mm/hugetlb_sysfs.c, Documentation/admin-guide/mm/hugetlbpage.rst).

Of the machine: kernel/mm/hugepages/hugepages-*kB; of a NUMA node: devices/system/node/node*/hugepages/hugepages-*kB.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memdiag_node.procfs.errors import ProcFormatError

_FOLDER = re.compile(r"hugepages-(\d{1,12})kB")
_NODE = re.compile(r"node(\d{1,6})")
_BYTES_PER_KB = 1024
_MAX_DIGITS = 15


@dataclass(frozen=True, slots=True)
class HugePages:
    """Pages of one size."""

    page_bytes: int
    numa_node: int | None
    """None: the whole machine."""
    pages: int
    """All, including surplus ones."""
    free: int
    reserved: int
    """Free pages that are promised to a mapping. 0 for a NUMA node, for which the kernel has no such count."""
    surplus: int


def read_huge_pages(sys: Path) -> list[HugePages]:
    """Return the pool of each size: of the machine, then of each NUMA node. Empty without CONFIG_HUGETLBFS.

    Raises ProcFormatError if a count is not a number.
    """
    pools = list(_pools(sys / "kernel/mm/hugepages", None))
    nodes = sys / "devices/system/node"
    numbers = [int(match[1]) for entry in _entries(nodes) if (match := _NODE.fullmatch(entry.name))]
    return pools + [pool for number in sorted(numbers) for pool in _pools(nodes / f"node{number}/hugepages", number)]


def used_bytes(pools: Sequence[HugePages]) -> int | None:
    """Return the bytes of all pages of the machine that are in use: not free. None without any pool."""
    if not pools:
        return None
    return sum(max(0, one.pages - one.free) * one.page_bytes for one in pools if one.numa_node is None)


def parse_count(text: bytes, *, source: str) -> int:
    """Parse a file with one number. Raises ProcFormatError."""
    digits = text.strip()
    if not digits.isdigit() or len(digits) > _MAX_DIGITS:
        raise ProcFormatError(source, 1, text, "a number")
    return int(digits)


def _pools(folder: Path, numa_node: int | None) -> Iterator[HugePages]:
    sizes = [(int(match[1]), entry) for entry in _entries(folder) if (match := _FOLDER.fullmatch(entry.name))]
    for kb, pool in sorted(sizes):
        yield HugePages(
            page_bytes=kb * _BYTES_PER_KB,
            numa_node=numa_node,
            pages=_count(pool / "nr_hugepages"),
            free=_count(pool / "free_hugepages"),
            reserved=_count(pool / "resv_hugepages") if numa_node is None else 0,
            surplus=_count(pool / "surplus_hugepages"),
        )


def _count(path: Path) -> int:
    return parse_count(path.read_bytes(), source=str(path))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
