"""Finding frame 0's struct page on simulated machines where only the runner's own pages are known."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.page_array import possible_starts
from memdiag_node.trace.pages.first_page import find_first_page, only_possible_start

GIB = 1 << 30
STRUCT_PAGE_BYTES = 64
FIRST_PAGE = 0xFFFFEA1240000000
ANONYMOUS, FREE = 1 << 12 | 1 << 14, 1 << 10
ARM64, X86_64 = 1 << 24, 1 << 30
OWN = list(range(0x45_6700, 0x45_6700 + 128))
HUGE_PAGE_FRAMES = 512


def half_in_huge_pages(frame: int) -> bool:
    """Every other huge page, in no order."""
    return (frame // HUGE_PAGE_FRAMES * 0x9E3779B1 >> 16) & 1 == 1


@dataclass
class Machine:
    """Pages of 4 KiB, and their flags in /proc/kpageflags."""

    memory_gib: int
    is_anonymous: Callable[[int], bool]
    own: Sequence[int] = field(default_factory=lambda: OWN)
    stuck: frozenset[int] = frozenset()
    """Pages of `own` in a batch for the LRU lists: anonymous for longer."""
    reused_in_rounds: int = 0
    """The number of rounds in which other memory reuses all of `own` as soon as it is unmapped."""
    twin_shift: int = 0
    """Distance in frames from `own` to memory that is mapped and unmapped at the same time, in the first round."""
    rounds: int = 0
    mapped: bool = False

    @property
    def frame_count(self) -> int:
        return self.memory_gib * GIB // 4096

    def read(self, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        return np.array([self._flags(frame) for frame in range(first_frame, first_frame + frames)], np.uint64)

    def _flags(self, frame: int) -> int:
        assert 0 <= frame < self.frame_count
        is_twin = self.twin_shift and self.rounds == 1 and frame + self.twin_shift in self.own
        if frame in self.own or is_twin:
            kept = frame in self.stuck or self.rounds <= self.reused_in_rounds
            return ANONYMOUS if self.mapped or (kept and not is_twin) else FREE
        return ANONYMOUS if self.is_anonymous(frame) else 0

    @contextmanager
    def own_pages(self) -> Iterator[npt.NDArray[np.uint64]]:
        self.rounds += 1
        self.mapped = True
        page_tables = [self.own[0] - 900, self.own[0] - 901]
        yield np.array([FIRST_PAGE + frame * STRUCT_PAGE_BYTES for frame in [*self.own, *page_tables]], np.uint64)
        self.mapped = False

    def find(self, alignment: int) -> int:
        return find_first_page(
            self.own_pages,
            self.read,
            frame_count=self.frame_count,
            struct_page_bytes=STRUCT_PAGE_BYTES,
            alignment=alignment,
        )


@pytest.mark.parametrize("alignment", [ARM64, X86_64])
@pytest.mark.parametrize("memory_gib", [24, 200, 500])
def test_half_of_memory_in_huge_anonymous_pages(memory_gib: int, alignment: int) -> None:
    machine = Machine(memory_gib, half_in_huge_pages)
    assert machine.find(alignment) == FIRST_PAGE
    assert machine.rounds == 1


@pytest.mark.parametrize("alignment", [ARM64, X86_64])
def test_all_of_memory_anonymous(alignment: int) -> None:
    assert Machine(100, lambda _: True).find(alignment) == FIRST_PAGE


def test_pages_that_wait_for_the_lru_lists_after_they_were_unmapped() -> None:
    assert Machine(100, half_in_huge_pages, stuck=frozenset(OWN[-31:])).find(ARM64) == FIRST_PAGE


def test_pages_that_others_take_at_once() -> None:
    machine = Machine(100, half_in_huge_pages, reused_in_rounds=3)
    assert machine.find(ARM64) == FIRST_PAGE
    assert machine.rounds == 4


def test_somebody_else_unmaps_in_the_same_moment() -> None:
    machine = Machine(100, half_in_huge_pages, twin_shift=GIB // 4096)
    assert machine.find(ARM64) == FIRST_PAGE
    assert machine.rounds == 2


def test_pages_that_never_change_say_nothing() -> None:
    with pytest.raises(BpfError, match="0 starts fit"):
        Machine(100, half_in_huge_pages, reused_in_rounds=100).find(ARM64)


@pytest.mark.parametrize(("memory_gib", "alignment", "starts"), [(60, X86_64, 1), (200, X86_64, 4), (60, ARM64, 60)])
def test_possible_starts_are_as_far_apart_as_the_alignment(memory_gib: int, alignment: int, starts: int) -> None:
    pages = np.array([FIRST_PAGE + STRUCT_PAGE_BYTES * (memory_gib * GIB // 4096 - 1)], np.uint64)
    found = possible_starts(pages, STRUCT_PAGE_BYTES, memory_gib * GIB // 4096, alignment)
    assert len(found) == starts
    assert FIRST_PAGE in found


def test_without_page_flags_only_a_small_machine_is_sure() -> None:
    small, large = Machine(60, half_in_huge_pages), Machine(200, half_in_huge_pages)
    sizes = {"struct_page_bytes": STRUCT_PAGE_BYTES}
    assert only_possible_start(small.own_pages, frame_count=small.frame_count, **sizes) == FIRST_PAGE
    with pytest.raises(BpfError, match="starts fit"):
        only_possible_start(large.own_pages, frame_count=large.frame_count, **sizes)
