"""How the memory of one class is divided among processes, without counting anything twice (pure).

The kernel counts memory that forks share once for the class and once for each of them, so the sum over processes may be
above what exists: by `excess` bytes. Only processes of one family share. That gives bounds which hold however the
excess is spread over families:

    a family has at least     its largest process, and at least its sum - excess
    a process has at least    its size - excess, and at least its size - the sizes of all others in its family

These are what the shares here consist of. Where nothing is shared they are exact. What they leave out is unexplained.
So ending all processes of a share brings back at least its size.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memdiag_node.owners.process_memory import ProcessMemory

SizeOf = Callable[[ProcessMemory], int]
_OWN_SHARE = 0.9
_MAIN_SHARE, _LARGE_SHARE, _ALIKE_SHARE = 0.5, 1 / 16, 0.5
_MANY = 5


@dataclass(frozen=True, slots=True)
class ProcessShare:
    """Memory that one process has for itself, or some together."""

    processes: tuple[ProcessMemory, ...]
    """The one with the most first."""
    size_bytes: int


def shares_of(processes: Sequence[ProcessMemory], size_of: SizeOf, excess_bytes: int) -> list[ProcessShare]:
    """Return who has how much, each byte for one of them or for none, processes of the same name grouped.

    `excess_bytes`: what may be counted more than once, in these processes and others. 0: they share nothing.
    """
    having = [one for one in processes if size_of(one)]
    families: dict[int, list[ProcessMemory]] = {}
    for one in having:
        families.setdefault(one.family, []).append(one)
    parts = [part for family in families.values() for part in _parts(family, size_of, excess_bytes)]
    return _grouped(parts, size_of)


def together_bytes(processes: Iterable[ProcessMemory], size_of: SizeOf, excess_bytes: int) -> int:
    """Return what these processes have at least together. `excess_bytes`: what all processes may have counted twice."""
    families: dict[int, list[int]] = {}
    for one in processes:
        families.setdefault(one.family, []).append(size_of(one))
    return sum(max(*sizes, sum(sizes) - excess_bytes) if len(sizes) > 1 else sizes[0] for sizes in families.values())


def _parts(family: Sequence[ProcessMemory], size_of: SizeOf, excess_bytes: int) -> list[ProcessShare]:
    """Return what each process of a family has for itself, or the family as one share if that leaves out much."""
    total_bytes = sum(map(size_of, family))
    own_bytes = {one.pid: size_of(one) - min(excess_bytes, total_bytes - size_of(one)) for one in family}
    shared_bytes = together_bytes(family, size_of, excess_bytes)
    members = sorted(family, key=size_of, reverse=True)
    if sum(max(0, own) for own in own_bytes.values()) < _OWN_SHARE * shared_bytes:
        return [ProcessShare(tuple(members), shared_bytes)]
    return [ProcessShare((one,), own_bytes[one.pid]) for one in members if own_bytes[one.pid] > 0]


def _grouped(parts: Sequence[ProcessShare], size_of: SizeOf) -> list[ProcessShare]:
    """Return the parts, largest first, those of one name as one; except those that stand out (`_stands_out`).

    This run's own process stays apart, so that it can be left out.
    """
    by_name: dict[tuple[str, bool], list[ProcessShare]] = {}
    for part in parts:
        by_name.setdefault((part.processes[0].comm, part.processes[0].is_self), []).append(part)
    total_bytes = sum(one.size_bytes for one in parts)
    result = []
    for named in by_name.values():
        left = sorted(named, key=lambda one: -one.size_bytes)
        while left and _stands_out(left, total_bytes):
            result.append(left.pop(0))
        if left:
            members = sorted((one for part in left for one in part.processes), key=size_of, reverse=True)
            result.append(ProcessShare(tuple(members), sum(one.size_bytes for one in left)))
    return sorted(result, key=lambda one: -one.size_bytes)


def _stands_out(named: Sequence[ProcessShare], total_bytes: int) -> bool:
    """Return whether the first of these shares, the largest of its name, is worth a line of its own.

    It is if it has most of what the name has, or if it is a large part of everything and few others are like it.
    """
    size_bytes = named[0].size_bytes
    alike = sum(one.size_bytes >= _ALIKE_SHARE * size_bytes for one in named[:_MANY])
    has_most = size_bytes >= _MAIN_SHARE * sum(one.size_bytes for one in named)
    return has_most or (size_bytes >= _LARGE_SHARE * total_bytes and alike < _MANY)
