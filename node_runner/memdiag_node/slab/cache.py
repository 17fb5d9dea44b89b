"""The slab caches of the kernel: the properties of each, as /proc/slabinfo and /sys/kernel/slab show them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable

_NAME_BYTES = 64
_MAX_OBJECT_BYTES = 1 << 24
_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Cache:
    """A struct kmem_cache. Caches of similar objects may be merged into one, under the name of the first."""

    address: int
    name: str
    stride_bytes: int
    """From one object to the next, with red zones and other metadata."""
    object_bytes: int
    free_pointer_bytes: int
    """Offset of the pointer to the next free object in a free object."""
    random: int
    """What that pointer is encoded with (CONFIG_SLAB_FREELIST_HARDENED); 0 if it is not."""
    left_pad_bytes: int
    """What precedes the first object of a slab, in a cache with red zones."""
    is_reclaimable: bool
    """Whether its slabs are SReclaimable, not SUnreclaim (SLAB_RECLAIM_ACCOUNT)."""
    is_merged: bool
    """Whether other caches are merged into it: its objects need not be what its name says."""


def read_caches(memory: KernelMemory, at: Mapping[str, int]) -> list[Cache]:
    """Every slab cache, by address. `at` is the result of `object_layout`."""
    any_cache = memory.any_slab_cache()
    listed = list_entries(memory, np.array([any_cache + at["KMEM_CACHE_LIST"]], "<u8"))
    # The head of the list is among the entries. It is not in a cache, and what looks like one there has no objects.
    addresses = np.union1d(listed - np.uint64(at["KMEM_CACHE_LIST"]), np.array([any_cache], "<u8"))

    def field(name: str) -> npt.NDArray[np.uint64]:
        return memory.peek(addresses + np.uint64(at[name]))

    def optional(switch: str, name: str) -> npt.NDArray[np.uint64]:
        return field(name) if switch in at else np.zeros(len(addresses), "<u8")

    columns = zip(
        addresses.tolist(),
        memory.texts(field("CACHE_NAME"), _NAME_BYTES),
        (field("CACHE_STRIDE") & np.uint64(_U32)).tolist(),
        (field("CACHE_OBJECT_BYTES") & np.uint64(_U32)).tolist(),
        (field("CACHE_FREE_POINTER") & np.uint64(_U32)).tolist(),
        optional("HAS_HARDENED_FREELIST", "CACHE_RANDOM").tolist(),
        (optional("HAS_RED_ZONE", "CACHE_LEFT_PAD") & np.uint64(_U32)).tolist(),
        field("CACHE_FLAGS").tolist(),
        (field("CACHE_USERS") & np.uint64(_U32)).astype("<u4").view("<i4").tolist(),  # negative if it is never merged
        strict=True,
    )
    return [
        Cache(
            address=address,
            name=printable(name, _NAME_BYTES),
            stride_bytes=stride,
            object_bytes=size,
            free_pointer_bytes=free_pointer,
            random=random,
            left_pad_bytes=pad if flags & at["RED_ZONE"] else 0,
            is_reclaimable=bool(flags & at["RECLAIM_ACCOUNT"]),
            is_merged=users > 1,
        )
        for address, name, stride, size, free_pointer, random, pad, flags, users in columns
        if 0 < size <= stride <= _MAX_OBJECT_BYTES and free_pointer < stride and pad < stride
    ]
