"""What the outstanding frames of each class are used for."""

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.procfs.kpageflags import FrameKind
from memdiag_node.slab.cache import Cache
from memdiag_node.trace.pages import tables
from memdiag_node.trace.pages.frame_tally import OUT_DTYPE, FrameTally
from memdiag_node.trace.pages.uses import MAX_LOOKUPS, NO_SLAB_PAGES, SlabPages, Uses, sampled_slab_blocks, uses_of

FIRST = tables.FIRST_CLASS
CACHES = [
    Cache(
        address=number,
        name=name,
        stride_bytes=64,
        object_bytes=64,
        free_pointer_bytes=0,
        random=0,
        left_pad_bytes=0,
        is_reclaimable=False,
        is_merged=False,
    )
    for number, name in enumerate(("filp", "dentry"))
]


def classes(stacks: dict[int, int]) -> npt.NDArray[np.void]:
    """Class infos with these stacks by class number, each of which has allocated something."""
    infos = np.zeros(tables.CLASSES, tables.CLASS_INFO_DTYPE)
    for number, stack in stacks.items():
        infos["key"]["stack"][number] = stack
        infos["allocated_pages"][number] = 100
    return infos


def blocks(*rows: tuple[int, int, int]) -> npt.NDArray[np.void]:
    return np.array(list(rows), OUT_DTYPE)


def frames_of(uses: Uses) -> dict[tuple[int, FrameKind, int], int]:
    rows = zip(uses.number.tolist(), uses.kind.tolist(), uses.cache.tolist(), uses.frames.tolist(), strict=True)
    return {(number - FIRST, FrameKind(kind), cache): frames for number, kind, cache, frames in rows}


def test_frames_are_divided_by_use_and_slab_by_the_caches_of_the_sample() -> None:
    tally = FrameTally()
    tally.by_kind[FrameKind.DIRECT, FIRST] = 7
    tally.by_kind[FrameKind.PAGE_TABLES, FIRST] = 3
    tally.by_kind[FrameKind.SLAB, FIRST + 1] = 40
    tally.by_kind[FrameKind.USER_MEMORY, FIRST + 1] = 9
    sample = blocks((0, FIRST + 1, 1), (8, FIRST + 1, 1), (16, FIRST + 1, 1), (24, FIRST + 1, 1))
    slab = SlabPages(sample, np.array([0, 1, 1, 1], np.int32), CACHES)
    assert frames_of(uses_of(classes({FIRST: 1, FIRST + 1: 2}), tally, slab)) == {
        (0, FrameKind.DIRECT, -1): 7,
        (0, FrameKind.PAGE_TABLES, -1): 3,
        (1, FrameKind.SLAB, 0): 10,
        (1, FrameKind.SLAB, 1): 30,
    }


def test_without_a_lookup_slab_has_no_cache() -> None:
    tally = FrameTally()
    tally.by_kind[FrameKind.SLAB, FIRST] = 5
    assert frames_of(uses_of(classes({FIRST: 1}), tally, NO_SLAB_PAGES)) == {(0, FrameKind.SLAB, -1): 5}


def test_a_class_that_freed_everything_counts_with_its_stack_if_that_has_others() -> None:
    """Hashes of stacks have 64 bits: as floating-point numbers, these two are equal."""
    stack, other = (1 << 63) + 1, (1 << 63) + 2
    tally = FrameTally()
    tally.by_kind[FrameKind.PAGE_TABLES, FIRST] = 5
    infos = classes({FIRST: stack, FIRST + 1: stack, FIRST + 2: other})
    assert frames_of(uses_of(infos, tally, NO_SLAB_PAGES)) == {
        (0, FrameKind.PAGE_TABLES, -1): 5,
        (1, FrameKind.PAGE_TABLES, -1): 0,
    }


@pytest.mark.parametrize("count", [10, MAX_LOOKUPS, 3 * MAX_LOOKUPS])
def test_of_many_slab_blocks_a_sample_is_looked_up(count: int) -> None:
    part = np.zeros(count, OUT_DTYPE)
    part["frame"] = np.arange(count)
    found = sampled_slab_blocks(FrameTally(slab_parts=[part]))["frame"]
    assert len(found) == min(count, MAX_LOOKUPS)
    assert len(set(np.diff(found).tolist())) == 1
