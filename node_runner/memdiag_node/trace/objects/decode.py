"""From the tables of the object trace to stacks, once the slabs of the objects are known (pure)."""

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.evidence import AllocatingProcess, AllocationUnit, Stack
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import MAX_COMM_LENGTH
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.text import printable
from memdiag_node.slab.lookup import LocatedObjects
from memdiag_node.trace.births import growth_of, median_life_seconds
from memdiag_node.trace.common_tables import MAX_LEVEL
from memdiag_node.trace.contexts import ContextCode
from memdiag_node.trace.identity import path_identity
from memdiag_node.trace.objects.eviction import Evictions
from memdiag_node.trace.objects.sampling import alignment_bytes, size_class_bytes
from memdiag_node.trace.objects.tables import DENSEST_BYTES, KIND_MASK, SPARSEST_BYTES, Kind
from memdiag_node.trace.stack_classes import callers, is_vmalloc
from memdiag_node.trace.stacks import CONTEXTS, trim

MAX_OBJECT_STACKS = 256
_LIFE_BUCKETS = 4 * 64
# No value in a map may make a figure too large for its field.
_MAX_SIZE_BYTES = 1 << 40
_MAX_ALLOCATED = 1 << 62
CLASSES = {Kind.SLAB: ClassName.SLAB, Kind.PERCPU: ClassName.PERCPU, Kind.VMALLOC: ClassName.VMALLOC}


@dataclass(frozen=True, slots=True)
class RawObjects:
    """The tables as they were when the trace ended."""

    entries: npt.NDArray[np.void]
    """OBJECT_ENTRY_DTYPE."""
    stacks: npt.NDArray[np.void]
    """STACK_ENTRY_DTYPE."""
    contexts: npt.NDArray[np.uint8]
    """The ContextCode of each of `stacks`."""
    symbols: Mapping[int, str]
    """A text for each address in a stack of `entries`, or of `totals` with a size."""
    totals: npt.NDArray[np.void]
    """TOTALS_ENTRY_DTYPE."""
    processes: npt.NDArray[np.void]
    """PROCESS_ENTRY_DTYPE."""
    cgroups: npt.NDArray[np.void]
    """CGROUP_ENTRY_DTYPE."""
    lives: npt.NDArray[np.void]
    """LIFE_ENTRY_DTYPE."""
    cpus: npt.NDArray[np.void]
    """CPU_DTYPE by CPU."""
    evictions: Evictions
    kinds: Sequence[Kind]
    """The kinds of memory that were traced."""
    started_ns: int
    """By the monotonic clock, as the times of birth."""
    slices: int
    slice_seconds: float
    traced_seconds: float
    table_bytes: int
    missed_runs: int
    """Runs of the programs that the kernel skipped: an interrupt arrived during a run of the same program."""

    def counter(self, name: str) -> int:
        """A counter's sum over all CPUs."""
        return int(self.cpus[name].sum())

    def slab_addresses(self) -> npt.NDArray[np.uint64]:
        """The address of each entry that is a slab object, in the order of `entries`."""
        keys = self.entries["key"]
        addresses: npt.NDArray[np.uint64] = keys[(keys & np.uint64(KIND_MASK)) == Kind.SLAB]
        return addresses


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """The objects that were outstanding when the trace ended."""

    stacks: list[Stack]
    """Largest first, at most MAX_OBJECT_STACKS."""
    classes: list[str]
    """The classes whose objects were traced."""
    recorded_objects: int
    lost_objects: int
    missed_runs: int
    unresolved_objects: int
    unseen_frees: int
    program_seconds: float
    """CPU time of recording. Of the objects that are not recorded, the cost is not measured."""
    table_bytes: int
    vmalloc_area_bytes: int = 0
    """What vmalloc allocated in the window, freed or not."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Objects with the same stack, class and cache."""

    memory_class: ClassName
    slab_cache: str
    is_reclaimable: bool
    frames: tuple[str, ...]
    context: ContextCode


_OUTSTANDING_DTYPE = np.dtype(
    [
        ("stack", "<u8"),
        ("born_ns", "<u8"),
        ("tgid", "<u4"),
        ("kind", "<u1"),
        ("cache", "<i4"),  # in LocatedObjects.caches, -1 for none
        ("size_bytes", "<f8"),  # of one object
        ("weight", "<f8"),  # the number of objects that this one represents
    ]
)


def decode_objects(raw: RawObjects, located: LocatedObjects | None, *, possible_cpus: int) -> ObjectResult:
    """Return the stacks of all outstanding objects.

    `located` has the slabs of `raw.slab_addresses()`; None if they could not be read: then slab objects are left out.
    """
    outstanding, unresolved, unseen_frees = _outstanding(raw, located, possible_cpus=possible_cpus)
    groups = _grouped(raw, located, outstanding)
    sizes = [(float(np.sum(part["size_bytes"] * part["weight"])), group, part) for group, part in groups]
    sizes.sort(key=lambda one: -one[0])
    totals = _Totals(raw, outstanding)
    stacks = [_stack(raw, totals, group, part) for size, group, part in sizes[:MAX_OBJECT_STACKS] if size >= 1]
    timed, recorded = raw.counter("timed"), raw.counter("recorded")
    kinds = [kind for kind in raw.kinds if kind is not Kind.SLAB or located is not None]
    return ObjectResult(
        stacks=stacks,
        classes=[CLASSES[kind].value for kind in kinds],
        recorded_objects=recorded,
        lost_objects=raw.counter("lost_objects"),
        unresolved_objects=unresolved,
        unseen_frees=unseen_frees,
        missed_runs=raw.missed_runs,
        program_seconds=raw.counter("recording_ns") / 1e9 * recorded / timed if timed else 0.0,
        table_bytes=raw.table_bytes,
        vmalloc_area_bytes=_vmalloc_area_bytes(raw),
    )


def _vmalloc_area_bytes(raw: RawObjects) -> int:
    sizes = {int(one["key"]): int(one["value"]["allocated_bytes"]) for one in raw.totals}
    return sum(
        min(sizes[int(entry["key"])], _MAX_ALLOCATED)
        for entry in raw.stacks
        if sizes.get(int(entry["key"]))
        and is_vmalloc([raw.symbols[address] for address in entry["value"]["address"].tolist() if address])
    )


def _outstanding(
    raw: RawObjects, located: LocatedObjects | None, *, possible_cpus: int
) -> tuple[npt.NDArray[np.void], int, int]:
    """The outstanding objects; how many others are in no slab that could be read, and how many are free or gone."""
    entries = raw.entries
    keys, values = entries["key"], entries["value"]
    kind = (keys & np.uint64(KIND_MASK)).astype(np.uint8)
    is_slab = kind == Kind.SLAB
    result = np.zeros(len(entries), _OUTSTANDING_DTYPE)
    result["stack"], result["born_ns"], result["tgid"] = values["stack"], values["born_ns"], values["tgid"]
    result["kind"] = kind
    result["cache"] = -1
    result["size_bytes"] = np.minimum(values["size_bytes"], _MAX_SIZE_BYTES)
    result["size_bytes"][kind == Kind.PERCPU] *= possible_cpus
    levels = np.minimum(values["level"], MAX_LEVEL).astype(np.int64) + raw.evictions.levels(entries)
    result["weight"] = np.exp2(levels.astype(np.float64))
    alignment = alignment_bytes(keys & ~np.uint64(KIND_MASK))
    one_in = np.clip(values["one_in"].astype(np.int64), 1, DENSEST_BYTES // SPARSEST_BYTES)
    result["weight"][is_slab] *= one_in[is_slab]
    good = raw.evictions.is_kept(entries) & (values["born_ns"] >= raw.started_ns) & np.isin(kind, [*Kind])
    is_kept = good & ~is_slab
    unresolved = unseen_frees = 0
    if located is not None:
        strides = np.array([*(cache.stride_bytes for cache in located.caches), 0], np.float64)
        result["cache"][is_slab] = located.cache
        result["size_bytes"][is_slab] = strides[located.cache]
        is_large = keys[is_slab] % np.uint64(mmap.PAGESIZE) == 0  # may be a large kmalloc, which is in no slab
        # Picked for the size of its cache, and now in another one, where another rule would apply.
        size_bytes = size_class_bytes(strides[located.cache].astype(np.uint64))
        is_denser = one_in[is_slab] * alignment[is_slab] < DENSEST_BYTES
        is_moved = (located.cache >= 0) & is_denser & (one_in[is_slab] * size_bytes != DENSEST_BYTES)
        is_gone = (located.is_gone | is_moved) & ~is_large
        unresolved = int(np.count_nonzero((located.cache < 0) & ~is_large & ~is_gone))
        unseen_frees = int(np.count_nonzero(is_gone | ((located.cache >= 0) & ~located.is_allocated)))
        is_kept[is_slab] = good[is_slab] & (located.cache >= 0) & located.is_allocated & ~is_moved
    return result[is_kept], unresolved, unseen_frees


def _grouped(
    raw: RawObjects, located: LocatedObjects | None, outstanding: npt.NDArray[np.void]
) -> Iterator[tuple[_Group, npt.NDArray[np.void]]]:
    """Objects whose stacks differ only in frames that are removed are in one group."""
    rows = {int(entry["key"]): number for number, entry in enumerate(raw.stacks)}
    identity = np.zeros(len(outstanding), [("stack", "<u8"), ("kind", "<u1"), ("cache", "<i4")])
    for name in ("stack", "kind", "cache"):
        identity[name] = outstanding[name]
    unique, where = np.unique(identity, return_inverse=True)
    numbers: dict[_Group, int] = {}
    group_of = np.full(len(unique), -1, np.int64)
    for index, one in enumerate(unique):
        row = rows.get(int(one["stack"]))
        group = _group(raw, located, row, Kind(int(one["kind"])), int(one["cache"]))
        if group is not None:
            group_of[index] = numbers.setdefault(group, len(numbers))
    of_object = group_of[where.reshape(-1)]
    order = np.argsort(of_object, kind="stable")
    edges = np.searchsorted(of_object[order], np.arange(len(numbers) + 1))
    for group, number in numbers.items():
        yield group, outstanding[order[edges[number] : edges[number + 1]]]


def _group(
    raw: RawObjects, located: LocatedObjects | None, row: int | None, kind: Kind, cache_number: int
) -> _Group | None:
    """None for an area that is not memory of vmalloc."""
    addresses = [] if row is None else raw.stacks["value"]["address"][row].tolist()
    context = ContextCode.UNKNOWN if row is None else ContextCode(int(raw.contexts[row]))
    frames = trim([raw.symbols[address] for address in addresses if address])
    if kind is Kind.VMALLOC and row is not None and not is_vmalloc(frames):
        return None
    memory_class, frames = callers(frames, CLASSES[kind])
    cache = located.caches[cache_number] if located is not None and cache_number >= 0 else None
    return _Group(
        memory_class,
        cache.name if cache else "",
        cache.is_reclaimable if cache else False,
        frames,
        context,
    )


def _weights(objects: npt.NDArray[np.void]) -> tuple[list[int], list[float]]:
    """The stacks of some objects, and how many objects they represent by stack."""
    stacks, where = np.unique(objects["stack"], return_inverse=True)
    return stacks.tolist(), np.bincount(where.reshape(-1), objects["weight"], minlength=len(stacks)).tolist()


class _Totals:
    """What was allocated through each stack, and how long it lived."""

    def __init__(self, raw: RawObjects, outstanding: npt.NDArray[np.void]) -> None:
        self._totals = {int(one["key"]): one["value"] for one in raw.totals}
        stacks, weights = _weights(outstanding)
        self._outstanding = dict(zip(stacks, weights, strict=True))
        self._lives: dict[int, dict[int, int]] = {}
        for entry in raw.lives:
            bucket = int(entry["key"]["bucket"])
            if bucket < _LIFE_BUCKETS:
                lives = self._lives.setdefault(int(entry["key"]["stack"]), {})
                lives[bucket] = lives.get(bucket, 0) + int(entry["value"])

    def of(self, objects: npt.NDArray[np.void]) -> tuple[float, float, float]:
        """Recorded objects, allocated objects, and allocated bytes, given the outstanding ones of a group.

        Totals are by stack. If the objects of a stack are in several caches, each has the share of what is outstanding.
        """
        recorded = allocated = allocated_bytes = 0.0
        for stack, weight in zip(*_weights(objects), strict=True):
            row = self._totals.get(stack)
            if row is not None:
                share = weight / self._outstanding[stack]
                recorded += share * int(row["recorded"])
                allocated += share * int(row["allocated"])
                allocated_bytes += share * int(row["allocated_bytes"])
        if objects["kind"][0] == Kind.SLAB:
            allocated_bytes = allocated * float(objects["size_bytes"][0])
        return recorded, allocated, allocated_bytes

    def median_life_seconds(self, stacks: Sequence[int]) -> float | None:
        lives: dict[int, int] = {}
        for stack in stacks:
            for bucket, count in self._lives.get(stack, {}).items():
                lives[bucket] = lives.get(bucket, 0) + count
        return median_life_seconds(lives)


def _stack(raw: RawObjects, totals: _Totals, group: _Group, objects: npt.NDArray[np.void]) -> Stack:
    weight, size_bytes = objects["weight"], objects["size_bytes"]
    object_bytes = size_bytes * weight
    outstanding_bytes = float(object_bytes.sum())
    error_bytes = math.sqrt(float(np.sum(size_bytes**2 * weight * (weight - 1))))
    born_seconds = (objects["born_ns"] - np.uint64(raw.started_ns)).astype(np.float64) / 1e9
    slices = np.minimum((born_seconds / raw.slice_seconds).astype(np.int64), raw.slices - 1)
    births = np.bincount(slices, object_bytes, minlength=raw.slices).tolist()
    growth = growth_of(
        births,
        slice_seconds=raw.slice_seconds,
        last_slice_seconds=max(0.0, raw.traced_seconds - (raw.slices - 1) * raw.slice_seconds),
        blocks=len(objects),
        error_bytes=error_bytes,
    )
    recorded, allocated, allocated_bytes = totals.of(objects)
    allocated_bytes = max(min(allocated_bytes, _MAX_ALLOCATED), outstanding_bytes)
    return Stack(
        frames=[frame[: limits.MAX_SHORT_TEXT] for frame in group.frames[: limits.MAX_FRAMES]],
        context=CONTEXTS[group.context],
        unit=AllocationUnit.OBJECTS,
        memory_class=group.memory_class,
        slab_cache=group.slab_cache,
        reclaimable=group.is_reclaimable,
        outstanding_bytes=round(outstanding_bytes),
        outstanding_blocks=round(float(weight.sum())),
        births_bytes=[round(born) for born in births],
        allocated_bytes=round(allocated_bytes),
        freed_bytes=max(0, round(allocated_bytes - outstanding_bytes)),
        growth_bytes_per_second=growth.bytes_per_second,
        growth_error_bytes_per_second=growth.error_bytes_per_second,
        median_life_seconds=totals.median_life_seconds(np.unique(objects["stack"]).tolist()),
        trend=growth.trend,
        sampled_share=min(1.0, recorded / allocated) if allocated else 1.0,
        error_bytes=round(error_bytes),
        processes=_processes(raw, group, objects, object_bytes),
    )


def _processes(
    raw: RawObjects, group: _Group, objects: npt.NDArray[np.void], object_bytes: npt.NDArray[np.float64]
) -> list[AllocatingProcess]:
    """The processes that allocated most of the outstanding memory."""
    if group.context is not ContextCode.PROCESS:
        return []
    pids, where = np.unique(objects["tgid"], return_inverse=True)
    sizes = np.bincount(where.reshape(-1), object_bytes, minlength=len(pids))
    known = {int(one["key"]): one["value"] for one in raw.processes}
    paths = {int(one["key"]): one["value"] for one in raw.cgroups}
    found = []
    for index in np.argsort(-sizes, kind="stable").tolist():
        pid = int(pids[index])
        if not pid:
            continue
        process = known.get(pid)
        path = paths.get(int(process["cgroup"])) if process is not None else None
        identity = path_identity(path) if path is not None else ContainerIdentity("", "")
        found.append(
            AllocatingProcess(
                pid=pid,
                comm=printable(bytes(process["comm"]), MAX_COMM_LENGTH) if process is not None else "",
                container_id=identity.container_id,
                pod_uid=identity.pod_uid,
                outstanding_bytes=round(float(sizes[index])),
            )
        )
    return found[: limits.MAX_PROCESSES]
