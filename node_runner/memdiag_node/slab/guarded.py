"""Objects of KFENCE, each alone in a page (mm/kfence/core.c).

KFENCE, a sampling detector of memory errors, takes a few allocations of each cache to pages of its own, which are
marked as slabs of the cache with one object, and no list. A page whose object is freed keeps the mark, but cannot be
read any more. Around an object its page is filled with a pattern.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader

MAX_PAGES = 1 << 11
"""As many are looked at: CONFIG_KFENCE_NUM_OBJECTS is 255 in most kernels."""
_PATTERN = int.from_bytes(bytes(0xAA ^ number for number in range(8)), "little")  # mm/kfence/kfence.h


def guarded_objects(
    memory: WordReader, at: Mapping[str, int], frames: npt.NDArray[np.uint64], linear_base: int
) -> npt.NDArray[np.uint64]:
    """The address of the object in each of these frames, at most MAX_PAGES of them; 0 where it is freed."""
    frames = frames[:MAX_PAGES]
    pages = (frames << np.uint64(at["PAGE_SHIFT"])) + np.uint64(linear_base)
    places = np.arange(0, 1 << at["PAGE_SHIFT"], 8, dtype="<u8")
    addresses = (pages[:, np.newaxis] + places).reshape(-1)
    words = memory.peek(addresses).reshape(len(frames), len(places))
    is_readable = (words != 0).any(axis=1)
    first = (words != np.uint64(_PATTERN)).argmax(axis=1)
    return np.where(is_readable, pages + places[first], np.uint64(0))
