"""From shares to the record of one class (pure)."""

from collections.abc import Iterable, Sequence

from memdiag_api import limits
from memdiag_api.owners import ClassOwners, ClassShare, MemoryOwner, OwnerKind
from memdiag_api.process_name import MAX_COMM_LENGTH, shown_process
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.shares import ProcessShare
from memdiag_node.procfs.cgroup import ContainerIdentity

Part = tuple[MemoryOwner, int]
"""An owner, and its bytes."""


def class_owners(memory_class: str, size_bytes: int, parts: Iterable[Part]) -> ClassOwners:
    """Return the record. Parts that would make the sum larger than the class are cut, the last ones first.

    They may be too large because sizes are read one after the other, while memory is used and freed.
    """
    left_bytes = size_bytes
    shares = []
    for owner, wanted_bytes in parts:
        given_bytes = max(0, min(wanted_bytes, left_bytes))
        left_bytes -= given_bytes
        if given_bytes:
            shares.append(ClassShare(owner=owner, size_bytes=given_bytes))
    shares.sort(key=lambda share: -share.size_bytes)
    return ClassOwners(
        memory_class=memory_class,
        size_bytes=size_bytes,
        explained_bytes=size_bytes - left_bytes,
        owners=shares[: limits.MAX_CLASS_OWNERS],
        owners_total=len(shares),
    )


def container_owner(identity: ContainerIdentity, processes: int) -> MemoryOwner:
    """Return the owner for a container, or for a pod if the container is not known."""
    return MemoryOwner(
        kind=OwnerKind.CONTAINER if identity.container_id else OwnerKind.POD,
        container_id=identity.container_id,
        pod_uid=identity.pod_uid,
        processes=processes,
    )


def process_owner(share: ProcessShare, parent: ProcessMemory | None = None) -> MemoryOwner:
    """Return the owner for one process, or for several of one name: then pid is that of the largest.

    `parent`: the process that all of them are children of, if there is one.
    """
    first, count = share.processes[0], len(share.processes)
    name = shown_process(first.comm, first.pid)
    if count > 1:
        quoted = shown_process(first.comm, 0).removesuffix("[0]")
        is_named = all(one.comm == first.comm for one in share.processes)
        name = f"{count} processes named {quoted}" if is_named else f"{name} and {count - 1} processes related to it"
        if parent is not None:
            name += f", children of {shown_process(parent.comm, parent.pid)}"
    return MemoryOwner(
        kind=OwnerKind.PROCESS,
        name=name,
        pid=first.pid,
        comm=first.comm[:MAX_COMM_LENGTH],
        processes=count,
        container_id=first.identity.container_id,
        pod_uid=first.identity.pod_uid,
    )


def common_parent(processes: Sequence[ProcessMemory], by_pid: dict[int, ProcessMemory]) -> ProcessMemory | None:
    """Return the parent that all these processes have in common, if there is one; never the node's first process."""
    parents = {one.parent_pid for one in processes}
    return by_pid.get(parents.pop()) if len(parents) == 1 and not parents <= {0, 1} else None
