"""The join: match blocks that the trace saw allocated and not freed with blocks that holders pin, by frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Overlap:
    """Bytes of one stack's outstanding blocks that one holder pins."""

    stack: int
    holder: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Join:
    """The holders that have blocks of each stack. A block that several packets share counts once in each figure."""

    overlaps: tuple[Overlap, ...]
    """Largest first."""
    explained_by_stack_bytes: dict[int, int]
    """Outstanding bytes of a stack that were found in any holder."""

    @property
    def explained_bytes(self) -> int:
        """Outstanding bytes that were found in any holder."""
        return sum(self.explained_by_stack_bytes.values())


def join_blocks(
    blocks: npt.NDArray[np.void],
    holders: Sequence[npt.NDArray[np.void]],
    *,
    struct_page_bytes: int,
    page_bytes: int,
) -> Join:
    """Find every outstanding block in the holders.

    `blocks` has the fields page, order, frames, stack and weight of the trace's result. Each of `holders` has page and
    order: the head page of every block that it pins. Pages are addresses of `struct page`, `struct_page_bytes` apart,
    so no frame number is needed. A holder may refer to any page in a traced block, so blocks that were split after
    their allocation are found as well.
    """
    if not len(blocks) or not any(len(held) for held in holders):
        return Join((), {})
    traced = np.sort(blocks, order="page")
    first = traced["page"]
    last = first + (np.uint64(1) << traced["order"].astype(np.uint64)) * np.uint64(struct_page_bytes)
    outstanding_bytes = np.rint(traced["frames"] * traced["weight"].astype(np.float64)).astype(np.int64) * page_bytes

    pages = np.concatenate([held["page"] for held in holders])
    holder_of = np.repeat(np.arange(len(holders)), [len(held) for held in holders])
    at = np.searchsorted(first, pages, side="right") - 1
    found = (at >= 0) & (pages < last[at])
    pairs = np.unique(np.stack((holder_of[found], at[found]), axis=1), axis=0)

    stacks = traced["stack"].astype(np.int64)
    by_pair = _sum_by((stacks[pairs[:, 1]], pairs[:, 0]), outstanding_bytes[pairs[:, 1]])
    found_blocks = np.unique(pairs[:, 1])
    by_stack = _sum_by((stacks[found_blocks],), outstanding_bytes[found_blocks])
    overlaps = [Overlap(stack, holder, size_bytes) for (stack, holder), size_bytes in by_pair.items()]
    return Join(
        overlaps=tuple(sorted(overlaps, key=lambda one: -one.size_bytes)),
        explained_by_stack_bytes={stack: size_bytes for (stack,), size_bytes in by_stack.items()},
    )


def _sum_by(keys: tuple[npt.NDArray[np.int64], ...], values: npt.NDArray[np.int64]) -> dict[tuple[int, ...], int]:
    """Sum `values` over rows with the same keys."""
    unique, where = np.unique(np.stack(keys, axis=1), axis=0, return_inverse=True)
    sums = np.zeros(len(unique), dtype=np.int64)
    np.add.at(sums, where.reshape(-1), values)
    return {tuple(map(int, key)): int(total) for key, total in zip(unique, sums, strict=True)}
