"""Where this kernel keeps its slabs, and how it marks the free objects in them (mm/slab.h, mm/slub.c)."""

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.linear_map import slab_layout
from memdiag_node.kernel.memory import memory_layout
from memdiag_node.kernel.per_cpu import per_cpu_layout
from memdiag_node.slab.page_scan import page_scan_layout

_CACHE: tuple[Field, ...] = (
    ("CACHE_NAME", "kmem_cache", "name"),
    ("CACHE_FLAGS", "kmem_cache", "flags"),
    ("CACHE_STRIDE", "kmem_cache", "size"),
    ("CACHE_OBJECT_BYTES", "kmem_cache", "object_size"),
    ("CACHE_FREE_POINTER", "kmem_cache", "offset"),
    ("CACHE_USERS", "kmem_cache", "refcount"),
)
_HARDENED: tuple[Field, ...] = (("CACHE_RANDOM", "kmem_cache", "random"),)  # CONFIG_SLAB_FREELIST_HARDENED
_RED_ZONE: tuple[Field, ...] = (("CACHE_LEFT_PAD", "kmem_cache", "red_left_pad"),)
_CPU_SLAB: tuple[Field, ...] = (  # replaced by sheaves in Linux 7.0
    ("CACHE_CPU_SLAB", "kmem_cache", "cpu_slab"),
    ("CPU_SLAB_FREELIST", "kmem_cache_cpu", "freelist"),
    ("CPU_SLAB_TRANSACTION", "kmem_cache_cpu", "tid"),
)
_SHEAVES: tuple[Field, ...] = (  # Linux 6.18
    ("CACHE_SHEAVES", "kmem_cache", "cpu_sheaves"),
    ("SHEAVES_MAIN", "slub_percpu_sheaves", "main"),
    ("SHEAVES_SPARE", "slub_percpu_sheaves", "spare"),
    ("SHEAVES_RCU_FREE", "slub_percpu_sheaves", "rcu_free"),
    ("SHEAF_LIST", "slab_sheaf", "barn_list"),
    ("SHEAF_CACHE", "slab_sheaf", "cache"),
    ("SHEAF_SIZE", "slab_sheaf", "size"),
    ("SHEAF_OBJECTS", "slab_sheaf", "objects"),
)
_NODE_BARN: tuple[Field, ...] = (
    ("NODE_BARN", "kmem_cache_node", "barn"),
    ("BARN_FULL", "node_barn", "sheaves_full"),
)
_CACHE_BARN: tuple[Field, ...] = (  # Linux 7.2
    ("CACHE_BARN", "kmem_cache", "per_node.barn"),
    ("BARN_FULL", "node_barn", "sheaves_full"),
)

# Bits of a cache's flags (include/linux/slab.h): an enumeration since Linux 6.10, these constants before.
_RECLAIM_ACCOUNT_BIT, _RED_ZONE_BIT = 17, 10


def object_layout(btf: Btf) -> dict[str, int]:
    """The offsets that `SlabCensus` needs, with HAS_SLAB_OBJECTS; empty if this kernel has another slab allocator."""
    slab = "slab" if btf.has_field("slab", "slab_cache") else "page"
    if not slab_layout(btf):
        return {}
    found = optional_offsets(btf, "HAS_SLAB_OBJECTS", (*_CACHE, ("SLAB_COUNTERS", slab, "counters")))
    if not found:
        return {}
    found |= optional_offsets(btf, "HAS_HARDENED_FREELIST", _HARDENED)
    found |= optional_offsets(btf, "HAS_RED_ZONE", _RED_ZONE)
    found |= optional_offsets(btf, "HAS_CPU_SLAB", _CPU_SLAB)
    found |= optional_offsets(btf, "HAS_SHEAVES", _SHEAVES)
    found["RECLAIM_ACCOUNT"] = 1 << _bit(btf, "_SLAB_RECLAIM_ACCOUNT", _RECLAIM_ACCOUNT_BIT)
    found["RED_ZONE"] = 1 << _bit(btf, "_SLAB_RED_ZONE", _RED_ZONE_BIT)
    found |= optional_offsets(btf, "HAS_NODE_BARN", _NODE_BARN)
    found |= optional_offsets(btf, "HAS_CACHE_BARN", _CACHE_BARN)
    return memory_layout(btf) | per_cpu_layout(btf) | page_scan_layout(btf) | found


def _bit(btf: Btf, name: str, before_enumeration: int) -> int:
    return btf.enum_value(name) if btf.has_enumerator(name) else before_enumeration
