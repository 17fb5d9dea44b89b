"""Where the counters of a memory cgroup are, in the running kernel's structures.

With the multi-generational LRU (Linux 6.1), pages are on lists of generations and types, anonymous and file, not on the
LRU lists, except for unevictable ones. The two youngest generations count as active.

Counters of pages by use (`state`) are an array whose index is, up to Linux 6.9, the kernel's number of the counter.
Since 6.10 it is the place of the counter in two lists in the source (kernel: mm/memcontrol.c, memcg_node_stat_items and
memcg_stat_items). The table of places cannot be read, but the lists are in the order of the source, and a counter that
this kernel does not have is not in its BTF either. `counters.state_agrees` checks the result against other counters.
"""

from memdiag_node.cgroups.tree import memory_cgroup_layout
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets

LRU_LISTS = 5
"""Inactive and active anonymous, inactive and active file, unevictable: include/linux/mmzone.h, enum lru_list."""
_REQUIRED: tuple[Field, ...] = (
    ("MEMCG_CSS", "mem_cgroup", "css"),
    ("MEMCG_USAGE", "mem_cgroup", "memory.usage"),
    ("MEMCG_LIMIT", "mem_cgroup", "memory.max"),
    ("CGROUP_ROOT", "cgroup", "root"),
    ("ROOT_HIERARCHY", "cgroup_root", "hierarchy_id"),
)
_OPTIONAL: tuple[Field, ...] = (
    ("MEMCG_FAILURES", "mem_cgroup", "memory.failcnt"),
    ("MEMCG_SWAP", "mem_cgroup", "swap.usage"),
    ("MEMCG_WITH_SWAP", "mem_cgroup", "memsw.usage"),
    ("MEMCG_KMEM", "mem_cgroup", "kmem.usage"),
)
_TCP: tuple[Field, ...] = (
    ("MEMCG_TCP", "mem_cgroup", "tcpmem.usage"),
    ("MEMCG_TCP_ACTIVE", "mem_cgroup", "tcpmem_active"),
)
_LRU: tuple[Field, ...] = (
    ("MEMCG_NODES", "mem_cgroup", "nodeinfo"),
    ("NODE_LRU_PAGES", "mem_cgroup_per_node", "lru_zone_size"),
)
_GENERATIONS: tuple[Field, ...] = (
    ("NODE_GENERATION_PAGES", "mem_cgroup_per_node", "lruvec.lrugen.nr_pages"),
    ("NODE_GENERATION_END", "mem_cgroup_per_node", "lruvec.lrugen.avg_refaulted"),
    ("NODE_YOUNGEST", "mem_cgroup_per_node", "lruvec.lrugen.max_seq"),
)
_EVENTS = {"EVENT_MAX": "MEMCG_MAX", "EVENT_OOM_KILL": "MEMCG_OOM_KILL"}
STATES = {
    "STATE_ANON": "NR_ANON_MAPPED",
    "STATE_FILE": "NR_FILE_PAGES",
    "STATE_SHMEM": "NR_SHMEM",
    "STATE_SLAB_RECLAIMABLE": "NR_SLAB_RECLAIMABLE_B",
    "STATE_SLAB_UNRECLAIMABLE": "NR_SLAB_UNRECLAIMABLE_B",
    "STATE_SOCKETS": "MEMCG_SOCK",
    "STATE_KERNEL": "MEMCG_KMEM",
}
"""The counters that are read, and the kernel's names for them."""
_FIRST_NODE_ITEMS = (
    *("NR_INACTIVE_ANON", "NR_ACTIVE_ANON", "NR_INACTIVE_FILE", "NR_ACTIVE_FILE", "NR_UNEVICTABLE"),
    *("NR_SLAB_RECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE_B"),
    "NR_PERCPU_B",  # of no released kernel when this was written
    *("WORKINGSET_REFAULT_ANON", "WORKINGSET_REFAULT_FILE", "WORKINGSET_ACTIVATE_ANON", "WORKINGSET_ACTIVATE_FILE"),
    *("WORKINGSET_RESTORE_ANON", "WORKINGSET_RESTORE_FILE", "WORKINGSET_NODERECLAIM"),
    *("NR_ANON_MAPPED", "NR_FILE_MAPPED", "NR_FILE_PAGES", "NR_FILE_DIRTY", "NR_WRITEBACK", "NR_SHMEM"),
)
_STRUCTS = ("mem_cgroup", "memcg_vmstats", "cgroup")
_NODE_STRUCTS = ("mem_cgroup_per_node", "lruvec_stats")
_PER_CPU_STRUCTS = ("memcg_vmstats_percpu", "cgroup_rstat_cpu", "css_rstat_cpu", "cgroup_rstat_base_cpu")
_PER_CPU_NODE_STRUCTS = ("lruvec_stats_percpu", "lruvec_stat")


def account_layout(btf: Btf) -> dict[str, int]:
    """The offsets of the tree and of the counters; without HAS_MEMORY_ACCOUNTS the counters cannot be read."""
    tree = memory_cgroup_layout(btf)
    found = optional_offsets(btf, "HAS_MEMORY_ACCOUNTS", _REQUIRED) if tree else {}
    if not found:
        return tree
    for field in _OPTIONAL:
        if btf.has_field(*field[1:]):
            found[field[0]] = btf.offset_bytes(*field[1:])
    found |= optional_offsets(btf, "HAS_TCP_ACCOUNTS", _TCP)
    found |= _lru_layout(btf) | _event_layout(btf) | _state_layout(btf)
    return tree | found | _sizes(btf)


def _lru_layout(btf: Btf) -> dict[str, int]:
    if not (btf.has_enumerator("__MAX_NR_ZONES") and btf.has_enumerator("NR_LRU_LISTS")):
        return {}
    found = optional_offsets(btf, "HAS_LRU_SIZES", _LRU) if btf.enum_value("NR_LRU_LISTS") == LRU_LISTS else {}
    if not found:
        return {}
    found["ZONES"] = zones = btf.enum_value("__MAX_NR_ZONES")
    generations = optional_offsets(btf, "HAS_GENERATIONS", _GENERATIONS)
    if generations:
        pages_bytes = generations.pop("NODE_GENERATION_END") - generations["NODE_GENERATION_PAGES"]
        found |= generations | {"GENERATIONS": pages_bytes // (8 * 2 * zones)}
    return found


def _event_layout(btf: Btf) -> dict[str, int]:
    if not btf.has_field("mem_cgroup", "memory_events") or not all(map(btf.has_enumerator, _EVENTS.values())):
        return {}
    events = btf.offset_bytes("mem_cgroup", "memory_events")
    return {name: events + 8 * btf.enum_value(event) for name, event in _EVENTS.items()}


def _state_layout(btf: Btf) -> dict[str, int]:
    """Where the array is, and the place of each counter in it, in words."""
    if not btf.has_field("mem_cgroup", "vmstats") or not btf.has_enumerator("MEMCG_NR_STAT"):
        return {}
    numbers = {name: btf.enum_value(item) for name, item in STATES.items() if btf.has_enumerator(item)}
    if not btf.has_struct("memcg_vmstats"):  # up to Linux 5.12
        return numbers | {"STATE": btf.offset_bytes("mem_cgroup", "vmstats")}
    if btf.has_field("mem_cgroup", "vmstats.state"):  # up to 5.19
        return numbers | {"STATE": btf.offset_bytes("mem_cgroup", "vmstats.state")}
    if not btf.has_field("memcg_vmstats", "events"):
        return {}
    start = btf.offset_bytes("memcg_vmstats", "state")
    words = (btf.offset_bytes("memcg_vmstats", "events") - start) // 8
    places = numbers if words == btf.enum_value("MEMCG_NR_STAT") else _places(btf, words)
    if not places:
        return {}
    pointer = {"STATE_POINTER": btf.offset_bytes("mem_cgroup", "vmstats"), "STATE": start}
    return places | pointer | ({} if places == numbers else {"STATE_BY_PLACE": 1})


def _places(btf: Btf, words: int) -> dict[str, int]:
    """The place of each counter in the two lists; empty if the array is not what the lists make of it."""
    if not btf.has_field("lruvec_stats", "state_local") or not btf.has_enumerator("MEMCG_SWAP"):
        return {}
    node_items = (btf.offset_bytes("lruvec_stats", "state_local") - btf.offset_bytes("lruvec_stats", "state")) // 8
    first = btf.enum_value("MEMCG_SWAP")
    if node_items + btf.enum_value("MEMCG_NR_STAT") - first != words:
        return {}
    listed = [item for item in _FIRST_NODE_ITEMS if btf.has_enumerator(item)]
    places = {name: listed.index(item) for name, item in STATES.items() if item in listed}
    own = {name: item for name, item in STATES.items() if item not in listed and btf.has_enumerator(item)}
    return places | {name: node_items + btf.enum_value(item) - first for name, item in own.items()}


def _sizes(btf: Btf) -> dict[str, int]:
    """Bytes of the structures of one memory cgroup: once, for each NUMA node, for each CPU, for both."""
    return {
        name: sum(btf.size_bytes(struct) for struct in structs if btf.has_struct(struct))
        for name, structs in (
            ("GROUP_BYTES", _STRUCTS),
            ("GROUP_NODE_BYTES", _NODE_STRUCTS),
            ("GROUP_CPU_BYTES", _PER_CPU_STRUCTS),
            ("GROUP_CPU_NODE_BYTES", _PER_CPU_NODE_STRUCTS),
        )
    }
