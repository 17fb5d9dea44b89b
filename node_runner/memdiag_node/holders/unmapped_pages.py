"""Pages that a process gave to the kernel and that no process maps any more: AF_XDP umem, buffers of io_uring.

The kernel keeps such pages until it lets go of them (Documentation/core-api/pin_user_pages.rst). While a process maps
them, they are its own: AnonPages, or Shmem if several can share them. After munmap(2), or if a child has the fd and the
parent has exited, no counter has them: they are allocpage. Pages of files that exist stay page cache.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.holders.fields import numbers, words
from memdiag_node.holding import pinned_blocks, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.kernel.page_mapping import PAGE_MAPPING_FIELD, is_anonymous

_COUNTS: tuple[Field, ...] = (("PAGE_MAPCOUNT", "page", "_mapcount"), PAGE_MAPPING_FIELD)
_LARGE_COUNTS: tuple[Field, ...] = (("FOLIO_LARGE_MAPCOUNT", "folio", "_large_mapcount"),)  # 6.10, 05c5323b2a34
_UNMAPPED = (1 << 32) - 1  # counts of mappings start at -1


def mapcount_fields(btf: Btf) -> dict[str, int]:
    """The offsets of what shows whether a page is mapped. Large blocks count only if the kernel sums up their maps."""
    return optional_offsets(btf, "HAS_MAPCOUNTS", _COUNTS) | optional_offsets(btf, "HAS_LARGE_MAPCOUNTS", _LARGE_COUNTS)


def unmapped_blocks(memory: WordReader, at: Mapping[str, int], blocks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Those of `blocks`, which a process provided, that belong to no file and that no process maps; each once.

    `blocks` is an array of walker.tally.BLOCK_DTYPE. Huge pages of hugetlbfs have a type where others have a count, so
    they are left out: they stay part of the class Hugetlb.
    """
    if "HAS_MAPCOUNTS" not in at or not len(blocks):
        return pinned_blocks(blocks[:0])
    found = unique_blocks(blocks)
    mapping = words(memory, found["page"], at["PAGE_MAPPING"])
    is_of_no_file = (mapping == 0) | is_anonymous(mapping)
    is_unmapped = numbers(memory, found["page"], at["PAGE_MAPCOUNT"]) == _UNMAPPED
    is_large = found["order"] > 0
    if "HAS_LARGE_MAPCOUNTS" in at:
        is_unmapped[is_large] &= numbers(memory, found["page"][is_large], at["FOLIO_LARGE_MAPCOUNT"]) == _UNMAPPED
    else:
        is_unmapped[is_large] = False
    return pinned_blocks(found[is_of_no_file & is_unmapped])
