"""The census of page frames in the document: blocks by order, charges by container (pure)."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import Census, CensusShare, CompoundBlocks
from memdiag_node.census.frames.frames import HELD_DTYPE, ChargedFrames, FrameCensus
from memdiag_node.procfs.cgroup import ContainerIdentity

_NO_CONTAINER = ContainerIdentity("", "")


def held_frames(
    holders: Sequence[npt.NDArray[np.void]], *, first_page: int, struct_page_bytes: int
) -> npt.NDArray[np.void]:
    """Return the frames of these holders' blocks (fields page and order), as HELD_DTYPE, each block once."""
    blocks = np.concatenate(holders) if holders else np.empty(0, [("page", "<u8"), ("order", "u1")])
    pages, first = np.unique(blocks["page"], return_index=True)
    held = np.zeros(len(pages), HELD_DTYPE)
    held["frame"] = (pages - np.uint64(first_page)) // np.uint64(struct_page_bytes)
    held["frames"] = np.uint64(1) << blocks["order"][first].astype(np.uint64)
    return held


def census_of(counted: FrameCensus, containers: Mapping[int, ContainerIdentity], *, page_bytes: int) -> Census:
    """Return the census for the document. `containers`: the container of each memory cgroup, by its inode."""
    return Census(
        compound=[
            CompoundBlocks(
                order=order,
                blocks=int(counted.blocks[order]),
                size_bytes=int(counted.frames[order]) * page_bytes,
                held_bytes=int(counted.held_frames[order]) * page_bytes if counted.knows_holders else None,
            )
            for order in np.flatnonzero(counted.blocks).tolist()
        ],
        charged=_shares(counted, containers, page_bytes)[: limits.MAX_CENSUS_SHARES] if counted.knows_charges else None,
        scanned_share=counted.scanned_share,
        scan_seconds=counted.scan_seconds,
    )


def _shares(counted: FrameCensus, containers: Mapping[int, ContainerIdentity], page_bytes: int) -> list[CensusShare]:
    """Return one share for each container with all its cgroups, and one for all other cgroups, largest first."""
    by_container: dict[ContainerIdentity, ChargedFrames] = {}
    for inode, frames in counted.charged.items():
        total = by_container.setdefault(containers.get(inode, _NO_CONTAINER), ChargedFrames())
        total.single += frames.single
        total.compound += frames.compound
        total.held += frames.held
    shares = [
        CensusShare(
            container_id=identity.container_id,
            pod_uid=identity.pod_uid,
            single_bytes=frames.single * page_bytes,
            compound_bytes=frames.compound * page_bytes,
            held_bytes=frames.held * page_bytes if counted.knows_holders else None,
        )
        for identity, frames in by_container.items()
    ]
    return sorted(shares, key=lambda share: -(share.single_bytes + share.compound_bytes))
