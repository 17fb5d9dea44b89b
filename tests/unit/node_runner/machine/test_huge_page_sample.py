"""The estimate of zero memory in huge pages, from flags and contents made by hand."""

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.machine.huge_page_sample import (
    SAMPLED_PAGES,
    HugePageHeads,
    ZeroCounts,
    count_zeros,
    huge_page_sample,
)
from memdiag_node.machine.reverse_map import Mapper
from memdiag_node.procfs.cgroup import ContainerIdentity

FRAMES = 512
PAGE_BYTES = 4096
BASE = 0xFFFF_8880_0000_0000
ANON, HEAD, TAIL, THP, ZERO = (1 << bit for bit in (12, 15, 16, 22, 24))
CONTAINER = ContainerIdentity("c" * 64, "pod")


@dataclass
class Contents:
    """Memory in which these frames have one word that is not zero, at an offset in the page."""

    written: set[int]
    offset: int = 0
    reads: int = field(default=0)

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        wanted = np.asarray(addresses, "<u8") - np.uint64(BASE)
        self.reads += len(wanted)
        is_written = np.isin(wanted // np.uint64(PAGE_BYTES), list(self.written))
        return np.asarray(is_written & (wanted % np.uint64(PAGE_BYTES) == self.offset), "<u8")


def flags_of(*huge: int, frames: int = 8 * FRAMES) -> npt.NDArray[np.uint64]:
    flags = np.zeros(frames, "<u8")
    for head in huge:
        flags[head : head + FRAMES] = ANON | THP | TAIL
        flags[head] = ANON | THP | HEAD
    return flags


def heads_of(flags: npt.NDArray[np.uint64], *, piece: int = 2 * FRAMES) -> HugePageHeads:
    heads = HugePageHeads(lambda first, frames: flags[first : first + frames], FRAMES)
    for first in range(0, len(flags), piece):
        heads.read(first, piece)
    return heads


def count(contents: Contents, heads: npt.NDArray[np.uint64]) -> ZeroCounts:
    return count_zeros(contents, heads, linear_base=BASE, page_bytes=PAGE_BYTES, frames_per_page=FRAMES)


def test_only_whole_huge_pages_of_processes_are_found() -> None:
    flags = flags_of(0, 3 * FRAMES, 5 * FRAMES, 6 * FRAMES)
    flags[5 * FRAMES + 16 : 6 * FRAMES] = 0  # a block of order 4 at the same place
    flags[6 * FRAMES : 7 * FRAMES] |= np.uint64(ZERO)  # the huge zero page
    found = heads_of(flags)
    assert found.frames.tolist() == [0, 3 * FRAMES]
    assert found.count == 2
    found.read(0, 2 * FRAMES)  # a second time
    assert found.count == 2


def test_a_kernel_without_huge_pages_has_none() -> None:
    heads = HugePageHeads(lambda _, frames: flags_of(0, frames=frames), 0)
    heads.read(0, FRAMES)
    assert (heads.count, len(heads.frames)) == (0, 0)


@pytest.mark.parametrize("offset", range(0, 4096, 584))
def test_a_page_with_one_word_is_not_zero_wherever_the_word_is(offset: int) -> None:
    heads = np.arange(0, 20 * FRAMES, FRAMES, dtype="<u8")
    written = {frame for frame in range(20 * FRAMES) if frame % 4 == 0}
    counts = count(Contents(written, offset), heads)
    assert counts.zero_pages.sum() == pytest.approx(0.75 * 20 * FRAMES, rel=0.08)


def test_the_sample_is_bounded_and_stops_when_it_is_late() -> None:
    heads = np.arange(0, 300 * FRAMES, FRAMES, dtype="<u8")
    contents = Contents(set(range(300 * FRAMES)))
    assert len(count(contents, heads).heads) == SAMPLED_PAGES
    stopped = count_zeros(
        contents, heads, linear_base=BASE, page_bytes=PAGE_BYTES, frames_per_page=FRAMES, late=lambda: True
    )
    assert len(stopped.heads) == 0
    assert huge_page_sample(stopped, {}, huge_pages=300, page_bytes=PAGE_BYTES) is None


def test_the_estimate_is_scaled_to_all_huge_pages() -> None:
    counts = ZeroCounts(np.arange(4, dtype="<u8"), np.array([512.0, 512.0, 0.0, 0.0]), FRAMES)
    found = huge_page_sample(counts, {}, huge_pages=100, page_bytes=PAGE_BYTES)
    assert found
    assert (found.sampled_pages, found.zero_share, found.mostly_zero_share) == (4, 0.5, 0.5)
    assert found.zero_bytes == 50 * FRAMES * PAGE_BYTES
    expected = np.std([1, 1, 0, 0], ddof=1) / 2 * np.sqrt(0.96) * 100 * FRAMES * PAGE_BYTES
    assert found.error_bytes == pytest.approx(expected)
    whole = huge_page_sample(counts, {}, huge_pages=4, page_bytes=PAGE_BYTES)
    assert whole
    assert whole.error_bytes == 0


def test_zero_pages_are_attributed_to_the_charged_container() -> None:
    counts = ZeroCounts(np.arange(4, dtype="<u8"), np.array([512.0, 512.0, 256.0, 0.0]), FRAMES)
    charged = replace(counts, charges=np.array([7, 7, 9, 7], "<u8"))
    found = huge_page_sample(charged, {7: CONTAINER}, huge_pages=8, page_bytes=PAGE_BYTES)
    assert found
    assert [(one.container_id, one.sampled_pages, one.zero_bytes) for one in found.containers] == [
        ("c" * 64, 3, 4 * FRAMES * PAGE_BYTES),
        ("", 1, 1 * FRAMES * PAGE_BYTES),
    ]


def test_zero_pages_are_attributed_to_the_process_that_has_the_page() -> None:
    one, other = Mapper(5, "java"), Mapper(6, "redis")
    counts = ZeroCounts(np.arange(4, dtype="<u8"), np.array([512.0, 512.0, 256.0, 0.0]), FRAMES)
    mapped = replace(counts, charges=np.array([7, 7, 9, 7], "<u8"), mappers=[one, None, other, one])
    found = huge_page_sample(mapped, {7: CONTAINER}, huge_pages=8, page_bytes=PAGE_BYTES)
    assert found
    assert [(of.pid, of.comm, of.container_id, of.sampled_pages, of.zero_bytes) for of in found.processes] == [
        (5, "java", "c" * 64, 2, 2 * FRAMES * PAGE_BYTES),
        (6, "redis", "", 1, 1 * FRAMES * PAGE_BYTES),
    ]
