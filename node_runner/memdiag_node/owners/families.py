"""Which processes can share anonymous memory: families of forks (pure)."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

from memdiag_node.owners.address_spaces import AddressSpace
from memdiag_node.owners.process_memory import ProcessMemory


def one_for_each_space(processes: Sequence[ProcessMemory], spaces: Mapping[int, AddressSpace]) -> list[ProcessMemory]:
    """Return the processes, with those that have one address space as one process: the first, with all threads."""
    first: dict[int, int] = {}
    result: list[ProcessMemory] = []
    for one in processes:
        space = spaces.get(one.pid)
        index = first.setdefault(space.address, len(result)) if space else len(result)
        if index < len(result):
            result[index] = replace(result[index], threads=result[index].threads + one.threads)
        else:
            result.append(one)
    return result


def families_of(
    processes: Sequence[ProcessMemory], spaces: Mapping[int, AddressSpace], code_bytes: Mapping[int, int]
) -> list[int]:
    """Return the family of each process, from 1.

    A process whose address space is in `spaces` belongs to those with the same layout. Any other belongs to its parent
    if the sizes of their code (`code_bytes`, by pid) are equal, and without such a parent to all of the same name and
    size of code: it may be a fork of a process that has ended. That may put strangers into one family, which makes what
    is certain to be theirs smaller, never larger.
    """
    by_pid = {one.pid: one for one in processes}
    keys: dict[int, Hashable] = {}
    for one in processes:
        at, descendants = one, []
        while at.pid not in keys:
            keys[at.pid] = _own_key(at, spaces, code_bytes)
            parent = by_pid.get(at.parent_pid)
            if parent is None or not _may_be_fork(at.pid, parent.pid, spaces, code_bytes):
                break
            descendants.append(at.pid)
            at = parent
        keys.update(dict.fromkeys(descendants, keys[at.pid]))
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(keys[one.pid], len(numbers) + 1) for one in processes]


def _own_key(one: ProcessMemory, spaces: Mapping[int, AddressSpace], code_bytes: Mapping[int, int]) -> Hashable:
    space = spaces.get(one.pid)
    return space.layout if space else (one.comm, code_bytes.get(one.pid, 0))


def _may_be_fork(pid: int, parent_pid: int, spaces: Mapping[int, AddressSpace], code_bytes: Mapping[int, int]) -> bool:
    """Return whether a process whose address space is not known may be a fork of its parent."""
    return pid not in spaces and code_bytes.get(pid, 0) == code_bytes.get(parent_pid, 0)
