"""Reading fields of many kernel objects at once."""

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader
from memdiag_node.procfs.text import printable

WORD_BYTES = 8
_NUMBER_BITS = 32


def words(memory: WordReader, objects: npt.NDArray[np.uint64], offset_bytes: int) -> npt.NDArray[np.uint64]:
    """The 8 bytes at an offset of each object; 0 where they cannot be read."""
    return memory.peek(objects + np.uint64(offset_bytes))


def numbers(
    memory: WordReader, objects: npt.NDArray[np.uint64], offset_bytes: int, *, bits: int = _NUMBER_BITS
) -> npt.NDArray[np.int64]:
    """The unsigned number of `bits` bits, less than 64, at an offset of each object."""
    mask = np.uint64((1 << bits) - 1)
    return (words(memory, objects, offset_bytes) & mask).astype(np.int64)


def pointers(memory: WordReader, table: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` words of a table; the caller bounds the count."""
    return memory.peek(np.uint64(table) + np.arange(count, dtype="<u8") * np.uint64(WORD_BYTES))


def text(memory: WordReader, address: int, size_bytes: int) -> str:
    """A name of at most `size_bytes`, a multiple of 8, made safe to print."""
    read = pointers(memory, address, size_bytes // WORD_BYTES).tobytes()
    return printable(read.split(b"\0")[0], size_bytes)
