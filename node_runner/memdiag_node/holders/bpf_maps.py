"""BPF maps other than ring buffers: vmalloc, per-CPU memory or slab, computed from each map's fields (map_sizes.py).

A map belongs to the processes with an fd of it. Without an fd it is pinned in a BPF file system, or only a loaded
program, another map or the kernel itself refers to it: the map's counters tell which. The maps that this run loaded
are recognized by their ids (`Holding.is_own`): the pids of the scan are those of another PID namespace in a container.
"""

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.memory_classes import ClassName
from memdiag_node.holders import bpf_programs
from memdiag_node.holders.bpf_programs import MapUser
from memdiag_node.holders.context import HolderContext
from memdiag_node.holders.fields import numbers, text, words
from memdiag_node.holders.map_sizes import ARRAYS, HASHES, MapFields, MapType, map_memory
from memdiag_node.holders.ring_buffers import RING_BUFFER_TYPES
from memdiag_node.holding import PINNED_DTYPE, Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.sockets.file_kinds import FileKind

_MAX_MAPS = 1 << 17
_MAX_LISTED = 64
_LISTED_BYTES = 256 << 10
_MAX_BYTES = 1 << 46
"""More is not the size of a map: its memory was freed and reused."""
_NAME_BYTES = 16  # include/uapi/linux/bpf.h, BPF_OBJ_NAME_LEN

_MAP_FILE = "anon_inode:bpf-map"

_MAP: tuple[Field, ...] = (
    ("MAP_ID", "bpf_map", "id"),
    ("MAP_TYPE", "bpf_map", "map_type"),
    ("MAP_NAME", "bpf_map", "name"),
    ("MAP_KEY_BYTES", "bpf_map", "key_size"),
    ("MAP_VALUE_BYTES", "bpf_map", "value_size"),
    ("MAP_MAX_ENTRIES", "bpf_map", "max_entries"),
    ("MAP_FLAGS", "bpf_map", "map_flags"),
    ("MAP_USERS", "bpf_map", "usercnt"),
    ("ARRAY_ELEMENT_BYTES", "bpf_array", "elem_size"),
    ("HASH_ELEMENT_BYTES", "bpf_htab", "elem_size"),
    ("HASH_BUCKETS", "bpf_htab", "n_buckets"),
    ("HASH_COUNT", "bpf_htab", "count"),
)
_PER_CPU_COUNT: tuple[Field, ...] = (  # 6.1, 86fe28f7692d
    ("HASH_COUNTS_PER_CPU", "bpf_htab", "use_percpu_counter"),
    ("HASH_PER_CPU_COUNT", "bpf_htab", "pcount.count"),
)
_TRIE: tuple[Field, ...] = (("TRIE_COUNT", "lpm_trie", "n_entries"),)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of what decides a map's size."""
    return (
        optional_offsets(btf, "HAS_MAP", _MAP)
        | optional_offsets(btf, "HAS_MAP_PER_CPU_COUNT", _PER_CPU_COUNT)
        | optional_offsets(btf, "HAS_MAP_TRIE", _TRIE)
    )


@dataclass(frozen=True, slots=True)
class _Map:
    """A map with its size."""

    address: int
    type: int
    number: int
    size_bytes: int
    memory_class: ClassName
    users: int
    """References by fds and pins."""


def find(context: HolderContext) -> list[Holding]:
    """The largest maps one by one, the others summed up by process and class of memory."""
    source, at = context.scanner.source, context.at
    if "HAS_MAP" not in at:
        return []
    addresses = source.bpf_maps()
    if len(addresses) > _MAX_MAPS:
        context.not_seen.append(f"{len(addresses) - _MAX_MAPS} BPF maps beyond {_MAX_MAPS}")
        addresses = addresses[:_MAX_MAPS]
    maps, unknown = _read(source.memory, at, addresses)
    if unknown:
        context.not_seen.append(f"the size of {unknown} BPF maps of types without a formula here")
    pairs = _fds(context.scan.files)
    own_ids = read_own_map_ids()
    own = [one for one in maps if one.number in own_ids and len({pid for pid, _ in pairs.get(one.address, ())}) <= 1]
    others = sorted(set(maps).difference(own), key=lambda one: -one.size_bytes)
    large = sum(one.size_bytes >= _LISTED_BYTES for one in others[:_MAX_LISTED])
    users = bpf_programs.users_of_maps(source, at)
    held = [_listed(context, one, pairs.get(one.address, []), users.get(one.address)) for one in others[:large]]
    of_this_run = [replace(one, is_own=True) for one in _summed(context, own, pairs)]
    return held + _summed(context, others[large:], pairs) + of_this_run


def read_own_map_ids(process: Path = Path("/proc/self")) -> set[int]:
    """Return the ids of the maps that this process has an fd of. One that is closed meanwhile may be missing.

    Raises OSError if /proc is not mounted.
    """
    found: set[int] = set()
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if fd.readlink().name == _MAP_FILE:
                lines = (process / "fdinfo" / fd.name).read_text().splitlines()
                found |= {int(line.split()[1]) for line in lines if line.startswith("map_id:")}
    return found


def _read(memory: WordReader, at: Mapping[str, int], maps: npt.NDArray[np.uint64]) -> tuple[list[_Map], int]:
    """Every map with its size, without ring buffers; and the number of maps whose size is not known."""
    columns = {
        name: numbers(memory, maps, at[name]).tolist()
        for name in ("MAP_TYPE", "MAP_ID", "MAP_KEY_BYTES", "MAP_VALUE_BYTES", "MAP_MAX_ENTRIES", "MAP_FLAGS")
    }
    users = words(memory, maps, at["MAP_USERS"]).astype(np.int64).tolist()
    types = np.array(columns["MAP_TYPE"])
    element_bytes, buckets, entries = (np.zeros(len(maps), np.int64) for _ in range(3))
    is_array, is_hash, is_trie = (np.isin(types, list(one)) for one in (ARRAYS, HASHES, [MapType.LPM_TRIE]))
    element_bytes[is_array] = numbers(memory, maps[is_array], at["ARRAY_ELEMENT_BYTES"])
    element_bytes[is_hash] = numbers(memory, maps[is_hash], at["HASH_ELEMENT_BYTES"])
    buckets[is_hash] = numbers(memory, maps[is_hash], at["HASH_BUCKETS"])
    entries[is_hash] = _hash_entries(memory, at, maps[is_hash])
    if "HAS_MAP_TRIE" in at:
        entries[is_trie] = numbers(memory, maps[is_trie], at["TRIE_COUNT"])
    cpus = os.sysconf("SC_NPROCESSORS_CONF")
    found, unknown = [], 0
    for number, address in enumerate(maps.tolist()):
        if types[number] in RING_BUFFER_TYPES:
            continue
        one = MapFields(
            type=int(types[number]),
            key_bytes=columns["MAP_KEY_BYTES"][number],
            value_bytes=columns["MAP_VALUE_BYTES"][number],
            max_entries=columns["MAP_MAX_ENTRIES"][number],
            flags=columns["MAP_FLAGS"][number],
            element_bytes=int(element_bytes[number]),
            buckets=int(buckets[number]),
            entries=min(int(entries[number]), columns["MAP_MAX_ENTRIES"][number]),
        )
        memory_of = map_memory(one, cpus=cpus)
        if memory_of is None:
            unknown += 1
        elif 0 < memory_of[0] <= _MAX_BYTES:
            found.append(_Map(address, one.type, columns["MAP_ID"][number], *memory_of, users[number]))
    return found, unknown


def _hash_entries(memory: WordReader, at: Mapping[str, int], maps: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The entries in use of each hash table. A counter per CPU lags behind by up to 32 for each of them."""
    entries = numbers(memory, maps, at["HASH_COUNT"])
    if "HAS_MAP_PER_CPU_COUNT" in at:
        is_per_cpu = numbers(memory, maps, at["HASH_COUNTS_PER_CPU"], bits=8) != 0
        counted = words(memory, maps, at["HASH_PER_CPU_COUNT"]).astype(np.int64)
        entries = np.where(is_per_cpu, np.maximum(counted, 0), entries)
    return entries


def _fds(files: npt.NDArray[np.void]) -> dict[int, list[tuple[int, int]]]:
    """(pid, fd) of the fds of each map, by its address."""
    pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for file in files[files["kind"] == FileKind.BPF_MAP]:
        pairs[int(file["socket"])].append((int(file["pid"]), int(file["fd"])))
    return pairs


def _listed(context: HolderContext, one: _Map, pairs: list[tuple[int, int]], user: MapUser | None) -> Holding:
    owners, total = context.owners(pairs)
    name = text(context.scanner.source.memory, one.address + context.at["MAP_NAME"], _NAME_BYTES)
    kind = MapType(one.type).name.lower().replace("_", " ")
    holder = Holder(
        kind=HolderKind.BPF_MAP,
        memory_class=one.memory_class,
        description=f"BPF map {name or 'without a name'}, {kind}, id {one.number}",
        owners=owners,
        owners_total=total,
        unowned_reason="" if total else _unowned_reason(one, user),
        pinned_bytes=one.size_bytes,
    )
    return Holding(holder, np.empty(0, PINNED_DTYPE))


def _unowned_reason(one: _Map, user: MapUser | None) -> str:
    used = f"the loaded program {user.name or 'without a name'}, id {user.program_id}" if user else ""
    if one.users > 0:
        pinned = "no fd: pinned in a BPF file system, or its fd is in flight"
        return f"{pinned}; used by {used}" if used else pinned
    return f"no fd: used by {used} only" if used else "no fd: used by the kernel or by another map only"


def _summed(context: HolderContext, maps: Sequence[_Map], pairs: dict[int, list[tuple[int, int]]]) -> list[Holding]:
    groups: dict[tuple[int, ClassName], list[_Map]] = defaultdict(list)
    for one in maps:
        pid = min((pid for pid, _ in pairs.get(one.address, ())), default=0)
        groups[pid, one.memory_class].append(one)
    held = []
    for (pid, memory_class), members in groups.items():
        owners, total = context.owners(pair for one in members for pair in pairs.get(one.address, ()))
        holder = Holder(
            kind=HolderKind.BPF_MAP,
            memory_class=memory_class,
            description=f"{len(members)} smaller BPF maps, together" if len(members) > 1 else "a smaller BPF map",
            owners=owners,
            owners_total=total,
            unowned_reason="" if pid else "no fd: pinned, or used by programs, other maps or the kernel only",
            summed=len(members),
            pinned_bytes=sum(one.size_bytes for one in members),
        )
        held.append(Holding(holder, np.empty(0, PINNED_DTYPE)))
    return held
