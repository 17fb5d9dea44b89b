"""The memory of BPF maps by their type, as the kernel's own map_mem_usage computes it (pure).

The kernel reports it only in the fdinfo of an fd of the map, which a runner may not read in most processes, and which
a pinned map does not have. The formulas are those of kernel/bpf/arraymap.c, hashtab.c, lpm_trie.c, queue_stack_maps.c,
stackmap.c, devmap.c and cpumap.c (map_mem_usage, since Linux 6.3; the memory is the same before).
"""

import mmap
from dataclasses import dataclass
from enum import IntEnum

from memdiag_api.memory_classes import ClassName


class MapType(IntEnum):
    """enum bpf_map_type (include/uapi/linux/bpf.h), without the ring buffers: their memory is allocpage."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    STACK_TRACE = 7
    CGROUP_ARRAY = 8
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    DEVMAP = 14
    SOCKMAP = 15
    CPUMAP = 16
    XSKMAP = 17
    SOCKHASH = 18
    REUSEPORT_SOCKARRAY = 20
    QUEUE = 22
    STACK = 23
    DEVMAP_HASH = 25


ARRAYS = frozenset(
    {
        *(MapType.ARRAY, MapType.PROG_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.PERCPU_ARRAY),
        *(MapType.CGROUP_ARRAY, MapType.ARRAY_OF_MAPS),
    }
)
HASHES = frozenset(
    {
        *(MapType.HASH, MapType.PERCPU_HASH, MapType.LRU_HASH, MapType.LRU_PERCPU_HASH),
        MapType.HASH_OF_MAPS,
    }
)
_PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH})
_LEAST_RECENTLY_USED = frozenset({MapType.LRU_HASH, MapType.LRU_PERCPU_HASH})
_POINTERS = frozenset(
    {
        *(MapType.DEVMAP, MapType.SOCKMAP, MapType.CPUMAP, MapType.XSKMAP),
        MapType.REUSEPORT_SOCKARRAY,
    }
)
_NO_PREALLOC, _MMAPABLE = 1 << 0, 1 << 10  # BPF_F_NO_PREALLOC, BPF_F_MMAPABLE
_POINTER_BYTES = 8
_BUCKET_BYTES = 16  # struct bucket: a list's head and a lock
_STACK_HEADER_BYTES = 16  # struct stack_map_bucket
_TRIE_NODE_BYTES = 24  # struct lpm_trie_node; its key without the prefix length and its value follow
_PREFIX_BYTES = 4
_KMALLOC_MAX_PAGES = 8  # up to PAGE_SIZE << PAGE_ALLOC_COSTLY_ORDER kmalloc is tried first (bpf_map_area_alloc)


@dataclass(frozen=True, slots=True)
class MapFields:
    """What decides the memory of a map. All numbers come from the kernel and may be anything."""

    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    element_bytes: int = 0
    """elem_size of an array or a hash table."""
    buckets: int = 0
    """n_buckets of a hash table."""
    entries: int = 0
    """Entries in use, for maps that allocate each entry on its own."""


def map_memory(one: MapFields, *, cpus: int) -> tuple[int, ClassName] | None:
    """Return the bytes of a map, without fixed-size structures, and their class; None for a type without a formula.

    `cpus` is the number of possible CPUs. A map with memory of several classes has that of the largest part.
    """
    if one.type in HASHES:
        return _hash_memory(one, cpus)
    if one.type == MapType.LPM_TRIE:
        node_bytes = _TRIE_NODE_BYTES + max(0, one.key_bytes - _PREFIX_BYTES) + one.value_bytes
        return one.entries * node_bytes, ClassName.SUNRECLAIM
    plain_bytes, per_cpu_bytes = _table_bytes(one), 0
    if plain_bytes is None:
        return None
    if one.type == MapType.PERCPU_ARRAY:
        per_cpu_bytes, plain_bytes = plain_bytes * cpus, one.max_entries * _POINTER_BYTES
    is_mapped = bool(one.flags & _MMAPABLE)
    if is_mapped:
        plain_bytes = _rounded(plain_bytes, mmap.PAGESIZE)
    return per_cpu_bytes + plain_bytes, _class(per_cpu_bytes, plain_bytes, is_mapped=is_mapped)


def _table_bytes(one: MapFields) -> int | None:
    """Return the bytes of a map that is one table; None for a type without a formula."""
    if one.type in ARRAYS:
        return one.max_entries * (one.element_bytes or _rounded(one.value_bytes, _POINTER_BYTES))
    if one.type in {MapType.QUEUE, MapType.STACK}:
        return (one.max_entries + 1) * one.value_bytes
    if one.type == MapType.STACK_TRACE:
        slots_bytes = _power_of_two(one.max_entries) * _POINTER_BYTES
        return slots_bytes + one.max_entries * (one.value_bytes + _STACK_HEADER_BYTES)
    if one.type == MapType.SOCKHASH:
        return _power_of_two(one.max_entries) * _BUCKET_BYTES
    if one.type == MapType.DEVMAP_HASH:
        return _power_of_two(one.max_entries) * _POINTER_BYTES
    return one.max_entries * _POINTER_BYTES if one.type in _POINTERS else None


def _hash_memory(one: MapFields, cpus: int) -> tuple[int, ClassName]:
    is_per_cpu = one.type in _PER_CPU
    table_bytes = one.buckets * _BUCKET_BYTES
    value_bytes = _rounded(one.value_bytes, 8) * cpus if is_per_cpu else 0
    if not one.flags & _NO_PREALLOC:
        # All but LRU maps keep a spare entry for each CPU.
        entries = one.max_entries + (0 if one.type in _LEAST_RECENTLY_USED or is_per_cpu else cpus)
        per_cpu_bytes = entries * value_bytes
        plain_bytes = table_bytes + entries * one.element_bytes
        return per_cpu_bytes + plain_bytes, _class(per_cpu_bytes, plain_bytes, is_mapped=False)
    # Each entry has a list node of its allocator in addition; one with values for each CPU has another and a pointer.
    per_cpu_bytes = one.entries * value_bytes
    entry_bytes = one.element_bytes + _POINTER_BYTES + (2 * _POINTER_BYTES if is_per_cpu else 0)
    slab_bytes = one.entries * entry_bytes
    largest = max(
        (per_cpu_bytes, ClassName.PERCPU), (slab_bytes, ClassName.SUNRECLAIM), (table_bytes, _area(table_bytes))
    )
    return per_cpu_bytes + slab_bytes + table_bytes, largest[1]


def _class(per_cpu_bytes: int, plain_bytes: int, *, is_mapped: bool) -> ClassName:
    if per_cpu_bytes > plain_bytes:
        return ClassName.PERCPU
    return ClassName.VMALLOC if is_mapped else _area(plain_bytes)


def _area(size_bytes: int) -> ClassName:
    """Return the class of memory from bpf_map_area_alloc."""
    return ClassName.VMALLOC if size_bytes > _KMALLOC_MAX_PAGES * mmap.PAGESIZE else ClassName.SUNRECLAIM


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


def _rounded(size_bytes: int, unit_bytes: int) -> int:
    return -(-size_bytes // unit_bytes) * unit_bytes
