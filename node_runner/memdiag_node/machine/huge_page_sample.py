"""How much of the anonymous transparent huge pages is zero: an estimate from a sample of them.

A process that touches one byte of a huge page has all of it. The contents of the pages are read only to see whether
they are zero. They are neither kept nor published.

Each small page of a sampled huge page is judged by a few words first, then by more of them, and a random part of the
pages that are still zero by all of them: this measures how many of the others are in fact not zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.machine import HugePageProcess, HugePageSample, HugePageZeros
from memdiag_node.kernel.lists import WordReader
from memdiag_node.machine.reverse_map import Mapper
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.kpageflags import ReadFrames, is_huge_anonymous_head

SAMPLED_PAGES = 256
_MAX_HEADS = 1 << 20
_WORD_BYTES = 8
_FIRST_WORDS, _MORE_WORDS = 8, 64
_CHECKED_PAGES = 1024
_PIECE_HEADS = 16
_HALF = 0.5
_SEED = 1
_NOBODY = ContainerIdentity("", "")


class HugePageHeads:
    """Collects the first frames of anonymous huge pages while a census reads /proc/kpageflags through `read`."""

    def __init__(self, read_flags: ReadFrames, frames_per_page: int) -> None:
        self._read_flags = read_flags
        self.frames_per_page = frames_per_page
        self._found: dict[int, npt.NDArray[np.uint64]] = {}
        self.count = 0

    def read(self, first_frame: int, frames: int) -> npt.NDArray[np.uint64]:
        """Read the flags, and keep which frames start an anonymous huge page."""
        flags = self._read_flags(first_frame, frames)
        if self.frames_per_page > 1 and first_frame not in self._found:
            skipped = -first_frame % self.frames_per_page
            first = flags[skipped :: self.frames_per_page]
            # Smaller blocks can start at the same frames: a huge page has a tail at its end as well.
            last = flags[skipped + self.frames_per_page - 1 :: self.frames_per_page]
            whole = is_huge_anonymous_head(first[: len(last)], last)
            heads = np.flatnonzero(whole).astype("<u8") * np.uint64(self.frames_per_page) + np.uint64(
                first_frame + skipped
            )
            self._found[first_frame] = heads[: max(0, _MAX_HEADS - self.count)]
            self.count += len(heads)
        return flags

    @property
    def frames(self) -> npt.NDArray[np.uint64]:
        """The first frames that were kept, ascending."""
        return np.concatenate([np.empty(0, "<u8"), *(self._found[first] for first in sorted(self._found))])


@dataclass(frozen=True, slots=True)
class ZeroCounts:
    """The small pages of each sampled huge page that are zero."""

    heads: npt.NDArray[np.uint64]
    zero_pages: npt.NDArray[np.float64]
    """Estimated by the share of checked pages that were in fact zero."""
    frames_per_page: int
    charges: npt.NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, "<u8"))
    """Inode of the memory cgroup that is charged for each. Empty if not known."""
    mappers: Sequence[Mapper | None] = ()
    """The process that has each. Empty if not known."""


def count_zeros(
    memory: WordReader,
    heads: npt.NDArray[np.uint64],
    *,
    linear_base: int,
    page_bytes: int,
    frames_per_page: int,
    late: Callable[[], bool] = lambda: False,
) -> ZeroCounts:
    """Count the zero pages in up to SAMPLED_PAGES huge pages, chosen at random, until `late` returns True.

    `linear_base` is the address of frame 0 in the linear map.
    """
    rng = np.random.default_rng(_SEED)
    chosen = rng.choice(heads, SAMPLED_PAGES, replace=False) if len(heads) > SAMPLED_PAGES else rng.permutation(heads)
    words = rng.permutation(page_bytes // _WORD_BYTES).astype("<u8") * np.uint64(_WORD_BYTES)
    done, zeros = 0, []
    for start in range(0, len(chosen), _PIECE_HEADS):
        if late():
            break
        piece = chosen[start : start + _PIECE_HEADS]
        frames = (piece[:, np.newaxis] + np.arange(frames_per_page, dtype="<u8")).reshape(-1)
        pages = frames * np.uint64(page_bytes) + np.uint64(linear_base)
        is_zero = _are_zero(memory, pages, words[:_FIRST_WORDS])
        is_zero[is_zero] = _are_zero(memory, pages[is_zero], words[_FIRST_WORDS:_MORE_WORDS])
        zeros.append((pages, is_zero))
        done += len(piece)
    if not done:
        return ZeroCounts(chosen[:0], np.empty(0), frames_per_page)
    addresses, found = (np.concatenate(column) for column in zip(*zeros, strict=True))
    candidates = addresses[found]
    if len(candidates) > _CHECKED_PAGES:
        candidates = rng.choice(candidates, _CHECKED_PAGES, replace=False)
    rest = words[_MORE_WORDS:]
    true_share = float(_are_zero(memory, candidates, rest).mean()) if len(candidates) and len(rest) else 1.0
    counted = found.reshape(done, frames_per_page).sum(axis=1) * true_share
    return ZeroCounts(chosen[:done], counted.astype(np.float64), frames_per_page)


def huge_page_sample(
    counts: ZeroCounts,
    containers: Mapping[int, ContainerIdentity],
    *,
    huge_pages: int,
    page_bytes: int,
) -> HugePageSample | None:
    """Return the estimate for all `huge_pages` of the node (pure). None without a sample."""
    sampled = len(counts.heads)
    if not sampled:
        return None
    huge_page_bytes = counts.frames_per_page * page_bytes
    shares = counts.zero_pages / counts.frames_per_page
    total_bytes = huge_pages * huge_page_bytes
    unseen_share = max(0.0, 1 - sampled / huge_pages) if huge_pages else 0.0
    deviation = float(shares.std(ddof=1)) if sampled > 1 else float(shares[0])
    return HugePageSample(
        huge_pages=huge_pages,
        huge_page_bytes=huge_page_bytes,
        sampled_pages=sampled,
        zero_share=float(shares.mean()),
        zero_bytes=round(float(shares.mean()) * total_bytes),
        error_bytes=round(deviation * (unseen_share / sampled) ** 0.5 * total_bytes),
        mostly_zero_share=float((shares > _HALF).mean()),
        containers=_by_container(counts, shares, containers, total_bytes)[: limits.MAX_HUGE_PAGE_OWNERS],
        processes=_by_process(counts, shares, containers, total_bytes)[: limits.MAX_HUGE_PAGE_OWNERS],
    )


def _by_container(
    counts: ZeroCounts,
    shares: npt.NDArray[np.float64],
    containers: Mapping[int, ContainerIdentity],
    total_bytes: int,
) -> list[HugePageZeros]:
    if not len(counts.charges):
        return []
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    for inode, share in zip(counts.charges.tolist(), shares.tolist(), strict=True):
        of = containers.get(inode, _NOBODY)
        pages, zeros = sums.get((of.container_id, of.pod_uid), (0, 0.0))
        sums[of.container_id, of.pod_uid] = (pages + 1, zeros + share)
    found = [
        HugePageZeros(
            container_id=container,
            pod_uid=pod,
            sampled_pages=pages,
            zero_bytes=round(zeros / len(shares) * total_bytes),
        )
        for (container, pod), (pages, zeros) in sums.items()
    ]
    return sorted(found, key=lambda one: -one.zero_bytes)


def _by_process(
    counts: ZeroCounts,
    shares: npt.NDArray[np.float64],
    containers: Mapping[int, ContainerIdentity],
    total_bytes: int,
) -> list[HugePageProcess]:
    charges = counts.charges.tolist() or [0] * len(counts.mappers)
    sums: dict[Mapper, tuple[int, float, ContainerIdentity]] = {}
    for mapper, inode, share in zip(counts.mappers, charges, shares.tolist(), strict=False):
        if mapper:
            pages, zeros, _ = sums.get(mapper, (0, 0.0, _NOBODY))
            sums[mapper] = (pages + 1, zeros + share, containers.get(inode, _NOBODY))
    found = [
        HugePageProcess(
            pid=mapper.pid,
            comm=mapper.comm,
            container_id=charged.container_id,
            pod_uid=charged.pod_uid,
            sampled_pages=pages,
            zero_bytes=round(zeros / len(shares) * total_bytes),
        )
        for mapper, (pages, zeros, charged) in sums.items()
    ]
    return sorted(found, key=lambda one: -one.zero_bytes)


def _are_zero(
    memory: WordReader, pages: npt.NDArray[np.uint64], words: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Return whether all these words of each page are zero. A word that cannot be read counts as zero."""
    if not len(pages) or not len(words):
        return np.ones(len(pages), np.bool_)
    values = memory.peek((pages[:, np.newaxis] + words).reshape(-1)).reshape(len(pages), len(words))
    return np.asarray(np.count_nonzero(values, axis=1) == 0, np.bool_)
