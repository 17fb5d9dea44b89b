"""A small kernel memory with slabs, made word by word: truth for what reads it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.slab.cache import Cache

LINEAR_BASE = 0xFFFF888000000000
PAGE_ARRAY = 0xFFFFEA0000000000
PAGE_SHIFT, STRUCT_PAGE_BYTES = 12, 64
SLAB_FLAG, TAIL_FLAG = 1 << 7, 1 << 16  # of /proc/kpageflags
PG_HEAD = 6
AT = {
    "PAGE_SHIFT": PAGE_SHIFT,
    "STRUCT_PAGE_BYTES": STRUCT_PAGE_BYTES,
    "PG_HEAD": PG_HEAD,
    "PAGE_FLAGS": 0,
    "PAGE_COMPOUND": 8,
    "SLAB_CACHE": 8,
    "SLAB_FREELIST": 32,
    "SLAB_COUNTERS": 40,
    "PAGE_ORDER": 64,
    "HAS_CPU_SLAB": 1,
    "CACHE_CPU_SLAB": 0,
    "CPU_SLAB_FREELIST": 0,
    "CPU_SLAB_TRANSACTION": 8,
    "HAS_SHEAVES": 1,
    "CACHE_SHEAVES": 8,
    "SHEAVES_MAIN": 8,
    "SHEAVES_SPARE": 16,
    "SHEAVES_RCU_FREE": 24,
    "SHEAF_LIST": 0,
    "SHEAF_CACHE": 16,
    "SHEAF_SIZE": 24,
    "SHEAF_OBJECTS": 32,
    "KMEM_CACHE_NODES": 200,
    "KMEM_CACHE_NODE": 200,
    "KMEM_CACHE_NODE_STRIDE": 8,
    "HAS_NODE_BARN": 1,
    "NODE_BARN": 64,
    "BARN_FULL": 8,
}


def make_cache(address: int = LINEAR_BASE + (15 << 20), *, stride: int = 256, **others: Any) -> Cache:
    usual: dict[str, Any] = {"name": "objects", "random": 0, "left_pad_bytes": 0}
    fields = usual | {"is_reclaimable": False, "is_merged": False} | others
    return Cache(address, stride_bytes=stride, object_bytes=stride, free_pointer_bytes=stride // 2, **fields)


@dataclass
class Memory:
    """Words by address; whatever was not written cannot be read."""

    words: dict[int, int] = field(default_factory=dict)
    reads: int = 0
    """Words that were asked for."""

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        wanted = np.asarray(addresses, "<u8")
        self.reads += len(wanted)
        return np.array([self.words.get(address, 0) for address in wanted.tolist()], "<u8")

    def chain(self, cache: Cache, objects: list[int], *, end: int = 0) -> int:
        """Make a list of free objects, encoded like its cache; returns its head."""
        for this, following in zip(objects, [*objects[1:], end], strict=False):
            place = this + cache.free_pointer_bytes
            stored = following
            if cache.random:
                stored ^= cache.random ^ int.from_bytes(place.to_bytes(8, "little"), "big")
            self.words[place] = stored
        return objects[0] if objects else end

    def slab(self, frame: int, cache: Cache, *, places: int, free: list[int], order: int = 0) -> None:
        """A slab of `places` objects, of which those with the numbers `free` are on its list."""
        page, start = PAGE_ARRAY + frame * STRUCT_PAGE_BYTES, address(frame)
        self.words[page + AT["PAGE_FLAGS"]] = (1 << PG_HEAD) if order else 0
        self.words[page + AT["PAGE_ORDER"]] = order
        self.words[page + AT["SLAB_CACHE"]] = cache.address
        head = self.chain(cache, [start + cache.stride_bytes * number for number in free])
        self.words[page + AT["SLAB_FREELIST"]] = head
        self.words[page + AT["SLAB_COUNTERS"]] = (places << 16) | (places - len(free))

    def tails(self, frame: int, *, order: int) -> None:
        """Mark the frames of a block but the first one: each points to the head."""
        for tail in range(frame + 1, frame + (1 << order)):
            self.words[page(tail) + AT["PAGE_COMPOUND"]] = page(frame) + 1


def page(frame: int) -> int:
    return PAGE_ARRAY + frame * STRUCT_PAGE_BYTES


def address(frame: int, offset: int = 0) -> int:
    return LINEAR_BASE + (frame << PAGE_SHIFT) + offset


def array(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, "<u8")
