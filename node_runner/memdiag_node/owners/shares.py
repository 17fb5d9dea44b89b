"""How the memory of one class is divided among processes, without counting anything twice (pure).

The kernel counts memory that forks share once for the class and once for each of them, so the sum over processes may be
above what exists: by `excess` bytes. Only processes of one family share. That gives bounds which hold however the
excess is spread over families:

    a family has at least     its largest process, and at least its sum - excess
    a process has at least    its size - excess, and at least its size - the sizes of all others in its family

These are what the shares here consist of. Where nothing is shared they are exact. What they leave out is unexplained.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from memdiag_node.owners.process_memory import ProcessMemory

SizeOf = Callable[[ProcessMemory], int]
_MAIN_SHARE = 0.5


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
    """Return the processes of a family that have most of their memory for themselves, and the rest as one share."""
    total_bytes = sum(map(size_of, family))
    alone, others = [], []
    for one in sorted(family, key=size_of, reverse=True):
        size_bytes = size_of(one)
        own_bytes = size_bytes - min(excess_bytes, total_bytes - size_bytes)
        if own_bytes > _MAIN_SHARE * size_bytes:
            alone.append(ProcessShare((one,), own_bytes))
        else:
            others.append(one)
    rest_bytes = together_bytes(family, size_of, excess_bytes) - sum(one.size_bytes for one in alone)
    if others and rest_bytes > 0:
        alone.append(ProcessShare(tuple(others), rest_bytes))
    return alone


def _grouped(parts: Iterable[ProcessShare], size_of: SizeOf) -> list[ProcessShare]:
    """Return the parts, largest first: those of one name as one, except those that have half or more of it.

    This run's own process stays apart, so that it can be left out.
    """
    by_name: dict[tuple[str, bool], list[ProcessShare]] = {}
    for part in parts:
        by_name.setdefault((part.processes[0].comm, part.processes[0].is_self), []).append(part)
    result = []
    for named in by_name.values():
        left = sorted(named, key=lambda one: -one.size_bytes)
        left_bytes = sum(one.size_bytes for one in left)
        while left and left[0].size_bytes >= _MAIN_SHARE * left_bytes:
            left_bytes -= left[0].size_bytes
            result.append(left.pop(0))
        if left:
            members = sorted((one for part in left for one in part.processes), key=size_of, reverse=True)
            result.append(ProcessShare(tuple(members), left_bytes))
    return sorted(result, key=lambda one: -one.size_bytes)
