"""To which memory cgroups the pages of a file are charged, from a sample of its pages."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.files.page_tree import some_entries
from memdiag_node.procfs.kpageflags import ReadFrames
from memdiag_node.slab.census import SlabCensus

_SAMPLED_PAGES = 64
_MAX_FRAME = 1 << 40


@dataclass(frozen=True, slots=True)
class Charge:
    """The cgroup that most sampled pages of a file are charged to."""

    cgroup_inode: int
    """0: to none."""
    share: float


def file_charges(
    census: SlabCensus, at: Mapping[str, int], inodes: npt.NDArray[np.uint64], read_charges: ReadFrames
) -> dict[int, Charge]:
    """Return the charge of each of these inodes, by their numbers; without those whose pages cannot be found.

    `at` has the results of `inode_fields` and `xarray_fields`; `read_charges` reads /proc/kpagecgroup.
    """
    if "HAS_XARRAY" not in at:
        return {}
    heads = census.read(inodes, at["INODE_PAGE_TREE"])
    owners, pages = some_entries(census.memory, at, heads, _SAMPLED_PAGES)
    frames, remainders = np.divmod(pages - np.uint64(census.first_page), np.uint64(census.at["STRUCT_PAGE_BYTES"]))
    good = (remainders == 0) & (frames < _MAX_FRAME)
    charged: dict[int, dict[int, int]] = {}
    for owner, frame in zip(owners[good].tolist(), frames[good].tolist(), strict=True):
        entry = read_charges(frame, 1)
        if len(entry):
            counts = charged.setdefault(owner, {})
            counts[int(entry[0])] = counts.get(int(entry[0]), 0) + 1
    return {owner: _most(counts) for owner, counts in charged.items()}


def _most(counts: Mapping[int, int]) -> Charge:
    inode, count = max(counts.items(), key=lambda one: one[1])
    return Charge(inode, count / sum(counts.values()))
