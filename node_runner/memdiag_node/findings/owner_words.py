"""Owners in sentences, and the processes of an owner (pure)."""

from collections.abc import Callable, Iterable, Sequence

from memdiag_api.findings import FreedBy
from memdiag_api.owners import ClassShare, MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_node.owners.process_memory import ProcessMemory

ID_SHOWN = 12
_MAX_LISTED = 4


def who(owner: MemoryOwner) -> str:
    """Return `container 4f1c4f1c4f1c of pod UID`, `nginx[7]`, `400 processes named postgres` or another name."""
    if owner.kind is OwnerKind.CONTAINER:
        of_pod = f" of pod {owner.pod_uid}" if owner.pod_uid else ""
        return f"container {owner.container_id[:ID_SHOWN]}{of_pod}"
    if owner.kind is OwnerKind.POD:
        return f"pod {owner.pod_uid}"
    return owner.name or owner.kind.value


def uses(owner: MemoryOwner) -> str:
    """Return the verb `uses`, in the form that fits `who(owner)`."""
    return "use" if owner.kind is OwnerKind.PROCESS and owner.processes > 1 else "uses"


def ending(owner: MemoryOwner, size_bytes: int | None) -> FreedBy | None:
    """Return what ends the owner. `size_bytes`: what that would bring back."""
    if owner.kind is OwnerKind.CONTAINER:
        return FreedBy(action=f"end or restart container {owner.container_id[:ID_SHOWN]}", size_bytes=size_bytes)
    if owner.kind is OwnerKind.POD:
        return FreedBy(action=f"end or restart pod {owner.pod_uid}", size_bytes=size_bytes)
    if owner.kind is OwnerKind.PROCESS:
        what = "all of the " if owner.processes > 1 else ""
        return FreedBy(action=f"end or restart {what}{owner.name}", size_bytes=size_bytes)
    return None


def processes_of(
    owner: MemoryOwner, processes: Iterable[ProcessMemory], shares: Iterable[ClassShare] = ()
) -> list[ProcessMemory]:
    """Return the processes of an owner; of a group outside of containers, those of its name.

    `shares`: all of the class; a process that is an owner by itself is not in the group.
    """
    if owner.kind in {OwnerKind.CONTAINER, OwnerKind.POD}:
        return [
            one
            for one in processes
            if one.identity.pod_uid == owner.pod_uid and one.identity.container_id == owner.container_id
        ]
    if owner.kind is not OwnerKind.PROCESS:
        return []
    if owner.processes == 1:
        return [one for one in processes if one.pid == owner.pid]
    apart = {one.owner.pid for one in shares if one.owner.kind is OwnerKind.PROCESS and one.owner.processes == 1}
    return [
        one for one in processes if one.comm == owner.comm and not one.identity.container_id and one.pid not in apart
    ]


def is_this_run(owner: MemoryOwner, processes: Iterable[ProcessMemory]) -> bool:
    """Return whether the owner is this run and nothing else. Its memory goes when it ends, which is now."""
    members = processes_of(owner, processes)
    return bool(members) and all(one.is_self for one in members)


def largest(members: Iterable[ProcessMemory], size_of: Callable[[ProcessMemory], int]) -> str:
    """Return the largest of these processes with their sizes."""
    chosen = sorted((one for one in members if size_of(one)), key=lambda one: -size_of(one))[:_MAX_LISTED]
    return listed([f"{shown_process(one.comm, one.pid)} ({format_bytes(size_of(one))})" for one in chosen])


def listed(parts: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))
