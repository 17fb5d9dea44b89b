"""Clues to what unexplained page frames are: what their struct pages say, and what their first words point to.

The frames are those that no flag of /proc/kpageflags identifies and no holder explains: kernel code took them from the
buddy allocator. Their struct pages may show a page pool, a mapping, a charge or a type (include/linux/mm_types.h).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.census.clues import FrameUse
from memdiag_node.census.clues.naming import AddressNames
from memdiag_node.census.clues.words import Sample, WordClue, find_clues, read_words
from memdiag_node.census.frames.block_heads import PAGE_TYPE_SHIFT, block_orders
from memdiag_node.census.slab_caches.object_charges import cgroup_inodes, charge_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.slab.census import SlabCensus

_TYPES = ("buddy", "offline", "table", "guard", "hugetlb", "slab", "zsmalloc", "unaccepted", "large_kmalloc", "netpp")
_MAX_BLOCKS, _WORDS, _CLUES_OF_ORDER = 1024, 64, 3
_FEWEST_BLOCKS = 8
_MAX_FRAMES = 1 << 16
_SEED = 1
_MIN_SHARE = 0.05
_U32 = 0xFFFFFFFF
_CONTAINER_ID_SHOWN = 12
# include/linux/page-flags.h, include/linux/memcontrol.h, include/net/page_pool
_MAPPING_BITS, _ANON_BIT, _MOVABLE_BIT, _KERNEL_CHARGE, _CHARGE_BITS = 3, 1, 2, 2, 7
_POISON, _POISON_SHIFT, _POOL_MASK, _POOL_SIGNATURE = 0xDEAD, 48, 0x7C, 0x40


@dataclass(frozen=True, slots=True)
class OrderFindings:
    """The blocks of one order."""

    subject: str
    blocks: int
    size_bytes: int
    sampled: int
    uses: tuple[tuple[str, int], ...]
    """Properties and how many of the sampled blocks have each."""
    charged: tuple[tuple[int, int], ...]
    """Inodes of memory cgroups and how many of the sampled blocks are charged to each; 0 if it is not known."""
    clues: tuple[WordClue, ...]


@dataclass(frozen=True, slots=True)
class FrameFindings:
    """What was found, and the containers that the inodes belong to."""

    orders: tuple[OrderFindings, ...]
    containers: Mapping[int, ContainerIdentity]


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `frame_clues` needs, as far as this kernel has them."""
    found = {"PAGE_PRIVATE": btf.offset_bytes("page", "private"), "PAGE_TYPE": btf.offset_bytes("page", "page_type")}
    found |= {f"TYPE_{name}": btf.enum_value(f"PGTY_{name}") for name in _TYPES if btf.has_enumerator(f"PGTY_{name}")}
    if btf.has_field("page", "pp_magic"):  # Linux 5.14
        found["PAGE_POOL_MAGIC"] = btf.offset_bytes("page", "pp_magic")
    charges = charge_layout(btf)
    if charges and btf.has_field("page", "memcg_data"):
        found |= charges | {"PAGE_CHARGE": btf.offset_bytes("page", "memcg_data")}
    return found


def frame_clues(
    census: SlabCensus,
    at: Mapping[str, int],
    names: AddressNames,
    *,
    heads: npt.NDArray[np.uint64],
    singles: npt.NDArray[np.uint64],
    containers: Mapping[int, ContainerIdentity],
) -> FrameFindings:
    """What heads of compound blocks and single frames show (page frame numbers of both).

    `at` is the result of `fields`, `containers` the container of each memory cgroup, by its inode. Of many frames a
    random sample is read; the numbers of blocks are scaled to all of them, and to the node.
    """
    rng = np.random.default_rng(_SEED)
    found = []
    for frames in (singles, heads):
        scale = len(frames) / min(len(frames), _MAX_FRAMES) / census.sampled_share if len(frames) else 1.0
        if len(frames) > _MAX_FRAMES:
            frames = frames[rng.integers(0, len(frames), _MAX_FRAMES)]  # noqa: PLW2901 - a sample stands for all
        orders = block_orders(census, _pages(census, frames))
        for order in np.unique(orders).tolist():
            blocks = frames[orders == order]
            chosen = rng.choice(blocks, min(len(blocks), _MAX_BLOCKS), replace=False)
            if len(chosen) >= _FEWEST_BLOCKS:
                found.append(_of_order(census, at, names, chosen, order=order, blocks=round(scale * len(blocks))))
    return FrameFindings(tuple(found), containers)


def _of_order(
    census: SlabCensus,
    at: Mapping[str, int],
    names: AddressNames,
    chosen: npt.NDArray[np.uint64],
    *,
    order: int,
    blocks: int,
) -> OrderFindings:
    uses, charged = _uses(census, at, _pages(census, chosen))
    size_bytes = blocks << order + census.at["PAGE_SHIFT"]
    clues = tuple(_content_clues(census, chosen, names)[:_CLUES_OF_ORDER])
    return OrderFindings(f"frames of order {order}", blocks, size_bytes, len(chosen), uses, charged, clues)


def _pages(census: SlabCensus, frames: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    pages: npt.NDArray[np.uint64] = frames * np.uint64(census.at["STRUCT_PAGE_BYTES"]) + np.uint64(census.first_page)
    return pages


def _content_clues(census: SlabCensus, frames: npt.NDArray[np.uint64], names: AddressNames) -> list[WordClue]:
    blocks = (frames << np.uint64(census.at["PAGE_SHIFT"])) + np.uint64(census.linear_base)
    return find_clues(census, Sample(blocks, read_words(census, blocks, _WORDS), -1), names)


def _uses(
    census: SlabCensus, at: Mapping[str, int], pages: npt.NDArray[np.uint64]
) -> tuple[tuple[tuple[str, int], ...], tuple[tuple[int, int], ...]]:
    """Properties of struct pages, and the memory cgroups that they are charged to, with their numbers."""

    def field(offset: int) -> npt.NDArray[np.uint64]:
        return census.memory.peek(pages + np.uint64(offset))

    types = (field(at["PAGE_TYPE"]) & np.uint64(_U32)) >> np.uint64(PAGE_TYPE_SHIFT)
    mapping = field(census.at["PAGE_MAPPING"])
    bits = mapping & np.uint64(_MAPPING_BITS)
    masks = {f"page type {name}": types == np.uint64(at[f"TYPE_{name}"]) for name in _TYPES if f"TYPE_{name}" in at}
    is_pool = np.zeros(len(pages), np.bool_)
    if "PAGE_POOL_MAGIC" in at:
        magic = field(at["PAGE_POOL_MAGIC"])
        is_pool = (magic >> np.uint64(_POISON_SHIFT) == np.uint64(_POISON)) & (
            magic & np.uint64(_POOL_MASK) == np.uint64(_POOL_SIGNATURE)
        )
        masks["in a page pool"] = is_pool
    # A page pool or a typed page keeps other things in these fields.
    is_other = is_pool | np.logical_or.reduce([np.zeros(len(pages), np.bool_), *masks.values()])
    masks["anonymous user memory"] = ~is_other & (bits == np.uint64(_ANON_BIT))
    masks["movable by its driver"] = ~is_other & (bits == np.uint64(_MOVABLE_BIT))
    masks["mapping of a file"] = ~is_other & (mapping != 0) & (bits == 0)
    masks["private data"] = ~is_other & (field(at["PAGE_PRIVATE"]) != 0)
    uses = tuple((name, int(mask.sum())) for name, mask in masks.items() if mask.any())
    if "PAGE_CHARGE" not in at:
        return uses, ()
    charge = field(at["PAGE_CHARGE"])
    pointers = charge & ~np.uint64(_CHARGE_BITS)
    is_kernel = charge & np.uint64(_KERNEL_CHARGE) != 0
    groups = np.where(is_kernel, census.memory.peek(pointers + np.uint64(at["OBJCG_MEMCG"])), pointers)
    inodes = cgroup_inodes(census, at, groups)[pointers != 0]
    return uses, tuple(Counter(inodes.tolist()).items())


def frame_use_records(found: FrameFindings | None) -> list[FrameUse]:
    """The properties that at least some of the blocks of an order have, by order and then by share."""
    records: list[FrameUse] = []
    for one in found.orders if found else ():
        uses = Counter(dict(one.uses))
        for inode, blocks in one.charged:
            identity = found.containers.get(inode) if found else None
            owner = f"container {identity.container_id[:_CONTAINER_ID_SHOWN]}" if identity else "a memory cgroup"
            uses[f"charged to {owner}"] += blocks
        records += [
            FrameUse(subject=one.subject, sampled=one.sampled, share=min(1.0, blocks / one.sampled), property=name)
            for name, blocks in uses.most_common()
            if blocks >= _MIN_SHARE * one.sampled
        ]
    return records[: limits.MAX_FRAME_USES]
