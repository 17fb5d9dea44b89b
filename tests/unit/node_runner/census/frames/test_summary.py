"""The census in the evidence document."""

import numpy as np

from memdiag_api.evidence import CensusShare, CompoundBlocks
from memdiag_node.census.frames.frames import ChargedFrames, FrameCensus
from memdiag_node.census.frames.summary import census_of, held_frames
from memdiag_node.procfs.cgroup import ContainerIdentity

PAGE = 4096
HELD = np.dtype([("page", "<u8"), ("order", "u1")])


def test_frames_of_holders_follow_from_their_struct_pages_and_shared_ones_count_once() -> None:
    base = 0xFFFF_EA00_0000_0000
    first, second = (np.array([(base + 64 * frame, order)], HELD) for frame, order in ((8, 3), (5, 0)))
    held = held_frames([first, second, first], first_page=base, struct_page_bytes=64)
    assert held.tolist() == [(5, 1), (8, 8)]
    assert not len(held_frames([], first_page=base, struct_page_bytes=64))


def test_cgroups_of_one_container_are_one_share_and_the_largest_comes_first() -> None:
    counted = FrameCensus(
        charged={1: ChargedFrames(10, 8, 4), 2: ChargedFrames(2, 0, 1), 3: ChargedFrames(50, 0, 0)},
        knows_charges=True,
        knows_holders=True,
    )
    counted.blocks[3], counted.frames[3], counted.held_frames[3] = 2, 16, 8
    container = ContainerIdentity("c0ffee", "a-pod")
    census = census_of(counted, {1: container, 2: container}, page_bytes=PAGE)
    assert census.compound == [CompoundBlocks(order=3, blocks=2, size_bytes=16 * PAGE, held_bytes=8 * PAGE)]
    assert census.charged == [
        CensusShare(container_id="", single_bytes=50 * PAGE, compound_bytes=0, held_bytes=0),
        CensusShare(
            container_id="c0ffee", pod_uid="a-pod", single_bytes=12 * PAGE, compound_bytes=8 * PAGE, held_bytes=5 * PAGE
        ),
    ]


def test_unknown_figures_are_null() -> None:
    counted = FrameCensus()
    counted.blocks[0] = counted.frames[0] = 1
    census = census_of(counted, {}, page_bytes=PAGE)
    assert census.charged is None
    assert census.compound[0].held_bytes is None
