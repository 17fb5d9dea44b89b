"""Find the address of frame 0's struct page, which maps frame numbers to addresses of struct pages.

Addresses of struct pages are a linear function of frame numbers, whose start is random and not exposed. So this process
allocates some pages, records the addresses of their struct pages, and tries every start that the kernel may have
chosen. For the right one, /proc/kpageflags reports these frames as anonymous while they are mapped, and no longer once
they are unmapped. Other anonymous memory, however much there is, does not change. Nothing has to be locked.
"""

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.page_array import LARGEST_ALIGNMENT_BYTES, ReadFlags, possible_starts
from memdiag_node.procfs.kpageflags import is_anonymous

OwnPages = Callable[[], AbstractContextManager[npt.NDArray[np.uint64]]]
"""Allocates pages for as long as the context lasts: the addresses of their struct pages, and of a few others."""

_PAGES = 128
# The program also sees pages that the kernel takes for this process and that are not anonymous, such as page tables.
_MAPPED_SHARE = 0.9
# Up to 31 unmapped pages stay anonymous while they wait in another CPU's batch for the LRU lists (mm/swap.c), and
# others may be reused at once. So not all have to change, and only a sample is checked, which is fast.
_UNMAPPED_SHARE = 0.5
_UNMAPPED_ONE_IN = 8
_ROUNDS = 8


def find_first_page(
    own_pages: OwnPages,
    read_flags: ReadFlags,
    *,
    frame_count: int,
    struct_page_bytes: int,
    alignment: int,
) -> int:
    """The address of frame 0's struct page. Raises BpfError if it cannot be determined."""

    def anonymous_share(start: int, pages: npt.NDArray[np.uint64]) -> float:
        frames = ((pages - np.uint64(start)) // np.uint64(struct_page_bytes)).tolist()
        return float(is_anonymous(np.concatenate([read_flags(frame, 1) for frame in frames])).sum()) / len(frames)

    starts: list[int] = []
    for _ in range(_ROUNDS):
        with own_pages() as pages:
            # The candidates left by earlier rounds; all, if others reused the pages of the last round at once.
            starts = starts or possible_starts(pages, struct_page_bytes, frame_count, alignment)
            starts = [start for start in starts if anonymous_share(start, pages) >= _MAPPED_SHARE]
        few = pages[::_UNMAPPED_ONE_IN]
        starts = [start for start in starts if anonymous_share(start, few) <= _UNMAPPED_SHARE]
        if len(starts) == 1:
            return starts[0]
    raise _not_found(starts)


def only_possible_start(
    own_pages: OwnPages, *, frame_count: int, struct_page_bytes: int, alignment: int = LARGEST_ALIGNMENT_BYTES
) -> int:
    """The address of frame 0's struct page without kpageflags. Raises BpfError if several are possible."""
    with own_pages() as pages:
        starts = possible_starts(pages, struct_page_bytes, frame_count, alignment)
    if len(starts) != 1:
        raise _not_found(starts)
    return starts[0]


def _not_found(starts: list[int]) -> BpfError:
    return BpfError(
        f"the frame numbers of struct pages cannot be determined: {len(starts)} starts fit the runner's own pages"
    )


def traced_own_pages(bpf: BpfObject, own: npt.NDArray[np.uint64], *, tracepoint: str, function: str) -> OwnPages:
    """Anonymous pages that this process touches while `function` records their struct pages in `own`.

    The first entry of `own` counts the others.
    """

    @contextmanager
    def pages() -> Iterator[npt.NDArray[np.uint64]]:
        own[0] = 0
        bpf.attach_raw_tracepoint(tracepoint, function)
        with mmap.mmap(-1, _PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            memory[:: mmap.PAGESIZE] = b"\1" * _PAGES
            bpf.detach_raw_tracepoint(tracepoint)
            yield np.array(own[1 : 1 + int(own[0])])

    return pages
