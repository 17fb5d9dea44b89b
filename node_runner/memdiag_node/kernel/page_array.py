"""Where the array of struct pages starts: the address of frame 0's struct page.

Addresses of struct pages are a linear function of frame numbers, whose start is random and not exposed.
"""

import mmap
import platform
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.lists import WordReader
from memdiag_node.procfs.kpageflags import is_slab

ReadFlags = Callable[[int, int], npt.NDArray[np.uint64]]
"""kpageflags of (first frame, number of frames)."""

_ALIGNMENT_BYTES = {"x86_64": 1 << 30}  # arch/x86/mm/kaslr.c: PUD_SIZE, with four and with five levels of page tables
# arm64: the start of memory is a multiple of ARM64_MEMSTART_ALIGN, at least a section: 1 GiB with pages of 4 KiB,
# 128 MiB with 16 KiB, 512 MiB with 64 KiB. The array has 64 bytes for each page.
_ARM64_ALIGNMENT_BYTES = {12: 1 << 24, 14: 1 << 19, 16: 1 << 19}
_SMALLEST_ALIGNMENT_BYTES = 1 << 19
LARGEST_ALIGNMENT_BYTES = 1 << 30

_SAMPLE = 64
_FIRST_LOOK = 16
# Slabs are freed and created meanwhile, and a wrong start may hit some other slabs.
_RIGHT_SHARE, _WRONG_SHARE = 0.9, 0.6
_IS_MASK = np.uint64((1 << 34) - 1)


def alignment_bytes(machine: str | None = None, page_bytes: int = mmap.PAGESIZE) -> int:
    """The minimum alignment of frame 0's struct page, in this machine's kernel unless another one is named."""
    machine = machine or platform.machine()
    if machine == "aarch64":
        return _ARM64_ALIGNMENT_BYTES.get(page_bytes.bit_length() - 1, _SMALLEST_ALIGNMENT_BYTES)
    return _ALIGNMENT_BYTES.get(machine, _SMALLEST_ALIGNMENT_BYTES)


def possible_starts(
    pages: npt.NDArray[np.uint64], struct_page_bytes: int, frame_count: int, alignment: int
) -> list[int]:
    """Starts that put all of `pages` inside the machine's frames."""
    if not len(pages):
        return []
    lowest, highest = int(pages.min()), int(pages.max())
    start = lowest - lowest % alignment
    end = max(0, highest - frame_count * struct_page_bytes)
    return list(range(start, end, -alignment))


def first_page_by_slabs(
    slabs: npt.NDArray[np.uint64],
    read_flags: ReadFlags,
    *,
    frame_count: int,
    struct_page_bytes: int,
    alignment: int,
) -> int:
    """The address of frame 0's struct page, from struct pages that head slabs: their frames' flags must say so.

    Raises BpfError if not exactly one start fits.
    """
    starts = possible_starts(slabs, struct_page_bytes, frame_count, alignment)
    sample = slabs[np.linspace(0, len(slabs) - 1, min(_SAMPLE, len(slabs))).astype(np.int64)] if len(slabs) else slabs

    def slab_share(start: int) -> float:
        frames = ((sample - np.uint64(start)) // np.uint64(struct_page_bytes)).tolist()
        # A hole beyond the end has no flags. A start that is wrong usually shows it early.
        slabs_seen = 0
        for seen, frame in enumerate(frames):
            slabs_seen += int(is_slab(read_flags(frame, 1)).sum())
            if seen + 1 == _FIRST_LOOK and slabs_seen < _WRONG_SHARE * _FIRST_LOOK / 2:
                return 0.0
        return slabs_seen / len(frames)

    shares = sorted(((slab_share(start), start) for start in starts), reverse=True)
    fits = [start for share, start in shares if share >= _RIGHT_SHARE]
    if len(fits) == 1 and all(share < _WRONG_SHARE for share, _ in shares[1:]):
        return fits[0]
    raise BpfError(f"the frame numbers of slabs cannot be determined: {len(fits)} of {len(starts)} starts fit")


def block_heads(memory: WordReader, at: Mapping[str, int], pages: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The struct page that heads the block of each of these struct pages; the page itself if it is in no block.

    `at` has the offsets of `block_layout`. What is read of a block that is freed meanwhile may be anything.
    """
    info = memory.peek(pages + np.uint64(at["PAGE_COMPOUND"]))
    heads = info - np.uint64(1)
    if "COMPOUND_MAY_BE_MASK" in at:
        # A mask has all high bits set, which no address of the page array has (as in walker.bpf.c).
        heads = np.where(info >> np.uint64(30) == _IS_MASK, pages & info, heads)
    return np.where(info & np.uint64(1) != 0, heads, pages)
