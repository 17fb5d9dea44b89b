"""Where an inode is in its object, from words of objects."""

import numpy as np
import numpy.typing as npt

from memdiag_node.census.files.inodes import inode_offset

HOST = 352
OBJECT_BYTES, PLACE = 1024, 272
OBJECTS = np.arange(0xFFFF888000000000, 0xFFFF888000000000 + 10 * OBJECT_BYTES, OBJECT_BYTES, dtype="<u8")


def words(inodes_in: int) -> npt.NDArray[np.uint64]:
    """Objects with an empty list, which points to itself; the first ones with an inode too."""
    rows = np.zeros((len(OBJECTS), OBJECT_BYTES // 8), "<u8")
    rows[:, 10] = OBJECTS + np.uint64(80)
    rows[:inodes_in, (PLACE + HOST) // 8] = OBJECTS[:inodes_in] + np.uint64(PLACE)
    return rows


def test_an_inode_is_found_by_its_own_address() -> None:
    assert inode_offset(words(len(OBJECTS)), OBJECTS, HOST) == PLACE


def test_a_few_objects_that_were_never_an_inode_do_not_matter() -> None:
    assert inode_offset(words(6), OBJECTS, HOST) == PLACE
    assert inode_offset(words(5), OBJECTS, HOST) is None


def test_no_objects_have_no_inode() -> None:
    assert inode_offset(words(0)[:0], OBJECTS[:0], HOST) is None


def test_a_host_before_the_start_of_the_object_is_none() -> None:
    rows = np.zeros((len(OBJECTS), OBJECT_BYTES // 8), "<u8")
    rows[:, 1] = OBJECTS + np.uint64(8) - np.uint64(HOST)
    assert inode_offset(rows, OBJECTS, HOST) is None
