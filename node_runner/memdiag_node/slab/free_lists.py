"""The free objects on the lists of slabs and CPUs (mm/slub.c).

A free object holds a pointer to the next one. With CONFIG_SLAB_FREELIST_HARDENED the pointer is stored exclusive-or a
secret of the cache and the byte-swapped address at which it is stored.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import WordReader
from memdiag_node.slab.cache import Cache

MAX_OBJECTS = 1 << 15
"""Of one slab: the kernel counts them in 15 bits."""
_KERNEL_HALF = 1 << 63  # of the address space
ATTEMPTS = 4
"""To read a list that changes meanwhile."""


Accept = Callable[[npt.NDArray[np.int64], npt.NDArray[np.uint64]], npt.NDArray[np.bool_]]
"""Receives the numbers of lists and the next object of each; returns which of the lists to follow further."""


class Encoding(NamedTuple):
    """How each list stores its pointers."""

    free_pointer_bytes: npt.NDArray[np.uint64]
    """Offset of the pointer in a free object."""
    random: npt.NDArray[np.uint64]
    """The secret of its cache; 0 if pointers are stored as they are."""

    def of(self, chosen: npt.NDArray[np.int64]) -> "Encoding":
        """The encoding of these lists, in this order."""
        return Encoding(self.free_pointer_bytes[chosen], self.random[chosen])


def follow(
    memory: WordReader, heads: npt.NDArray[np.uint64], encoding: Encoding, accept: Accept, *, max_steps: int
) -> npt.NDArray[np.bool_]:
    """Follow many lists in step; returns which of them were followed to their end.

    A list that changes meanwhile may lead to garbage, which `accept` rejects, or into a cycle, which `max_steps` ends.
    """
    is_whole: npt.NDArray[np.bool_] = heads == 0
    lists = np.flatnonzero(heads)
    objects = heads[lists]
    for _ in range(max_steps):
        if not len(lists):
            break
        good = accept(lists, objects)
        lists, objects = lists[good], objects[good]
        places = objects + encoding.free_pointer_bytes[lists]
        stored, secret = memory.peek(places), encoding.random[lists]
        objects = np.where(secret != 0, stored ^ secret ^ places.byteswap(), stored)
        is_whole[lists[objects == 0]] = True
        going = objects != 0
        lists, objects = lists[going], objects[going]
    return is_whole


class CpuLists(NamedTuple):
    """The free objects on the CPUs' own lists."""

    caches: npt.NDArray[np.int64]
    """The number of the cache of each object."""
    objects: npt.NDArray[np.uint64]
    unfollowed: npt.NDArray[np.int64]
    """The numbers of the caches of lists that kept changing: what was read of them is not certain."""


def cpu_lists(
    memory: WordReader,
    at: Mapping[str, int],
    caches: Sequence[Cache],
    per_cpu: npt.NDArray[np.uint64],
    is_object: Accept,
    *,
    max_steps: int,
) -> CpuLists:
    """Read the CPUs' lists of these caches. `is_object` receives numbers of caches.

    The kernel changes a CPU's transaction id with each operation on its list, so a list was read whole if the id is
    the same afterwards.
    """
    owners, objects, unfollowed = [np.empty(0, np.int64)], [np.empty(0, "<u8")], np.empty(0, np.int64)
    owner, copies = _cpu_slabs(memory, at, caches, per_cpu)
    encoding = encoding_of(caches)
    for attempt in range(ATTEMPTS):
        if not len(copies):
            break
        transactions = memory.peek(copies + np.uint64(at["CPU_SLAB_TRANSACTION"]))
        heads = memory.peek(copies + np.uint64(at["CPU_SLAB_FREELIST"]))
        lists, found, is_whole = _collect(memory, heads, encoding.of(owner), max_steps=max_steps)
        is_right = is_object(owner[lists], found)
        lists_gone_wrong = lists[~is_right]
        is_whole[lists_gone_wrong] = False
        is_whole &= memory.peek(copies + np.uint64(at["CPU_SLAB_TRANSACTION"])) == transactions
        if attempt == ATTEMPTS - 1:
            unfollowed = owner[~is_whole]
            is_whole[:] = True  # the last reading counts, whatever it is
        kept = is_whole[lists] & is_right
        owners.append(owner[lists[kept]])
        objects.append(found[kept])
        owner, copies = owner[~is_whole], copies[~is_whole]
    return CpuLists(np.concatenate(owners), np.concatenate(objects), unfollowed)


def encoding_of(caches: Sequence[Cache]) -> Encoding:
    """The encoding of the lists of each cache."""
    pointers = np.array([cache.free_pointer_bytes for cache in caches], "<u8")
    return Encoding(pointers, np.array([cache.random for cache in caches], "<u8"))


def _collect(
    memory: WordReader, heads: npt.NDArray[np.uint64], encoding: Encoding, *, max_steps: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """The list of each object and the object, and which lists were followed to their end.

    The objects are checked at the end, all at once; until then, only what no pointer looks like ends a list.
    """
    lists_found, found = [np.empty(0, np.int64)], [np.empty(0, "<u8")]

    def accept(lists: npt.NDArray[np.int64], objects: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        lists_found.append(lists)
        found.append(objects)
        is_pointer: npt.NDArray[np.bool_] = (objects >= np.uint64(_KERNEL_HALF)) & (objects & np.uint64(7) == 0)
        return is_pointer

    is_whole = follow(memory, heads, encoding, accept, max_steps=max_steps)
    return np.concatenate(lists_found), np.concatenate(found), is_whole


def _cpu_slabs(
    memory: WordReader, at: Mapping[str, int], caches: Sequence[Cache], per_cpu: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Every CPU's struct kmem_cache_cpu of these caches: the number of its cache, and its address."""
    if "HAS_CPU_SLAB" not in at:
        return np.empty(0, np.int64), np.empty(0, "<u8")
    return per_cpu_copies(memory, caches, per_cpu, at["CACHE_CPU_SLAB"])


def per_cpu_copies(
    memory: WordReader, caches: Sequence[Cache], per_cpu: npt.NDArray[np.uint64], offset_bytes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Every CPU's copy of what a per-CPU pointer in each cache points to: the number of the cache, and the address."""
    pointers = memory.peek(np.array([cache.address for cache in caches], "<u8") + np.uint64(offset_bytes))
    owner = np.repeat(np.arange(len(caches)), len(per_cpu))
    copies = (pointers[:, np.newaxis] + per_cpu).reshape(-1)
    used = np.repeat(pointers, len(per_cpu)) != 0
    return owner[used], copies[used]
