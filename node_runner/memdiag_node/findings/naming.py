"""Names of holders and their owners in sentences, and as records."""

from collections.abc import Sequence

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind, Owner
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process

KINDS = {
    HolderKind.SOCKET: "socket",
    HolderKind.PIPE: "pipe",
    HolderKind.PAGE_POOL: "page pool",
    HolderKind.PACKET_RING: "packet ring",
    HolderKind.RING_BUFFER: "ring buffer",
    HolderKind.TUN_QUEUE: "tun queue",
    HolderKind.PACKET_QUEUE: "packet queue",
    HolderKind.IO_URING: "io_uring",
    HolderKind.FTRACE_BUFFER: "ftrace buffer",
    HolderKind.BPF_MAP: "BPF map",
    HolderKind.BPF_PROGRAM: "BPF program",
    HolderKind.XDP_SOCKET: "AF_XDP socket",
    HolderKind.EVENT_QUEUE: "event queue",
    HolderKind.DRM_BUFFER: "graphics client",
}
_AFTER_AN = ("io_uring", "ftrace", "AF_XDP", "event")
THIS_RUN = "this run of memdiag-node"
_ID_SHOWN = 12


def counted(kind: HolderKind, count: int) -> str:
    """Return the number of holders and their kind: `a packet ring`, `4 packet rings`."""
    noun = KINDS[kind]
    article = "an" if noun.startswith(_AFTER_AN) else "a"
    return f"{article} {noun}" if count == 1 else f"{count} {noun}s"


def process_name(owner: Owner) -> str:
    """Return `comm[pid]`, with a comm that cannot be confused with anything else."""
    return shown_process(owner.comm, owner.pid)


def short_id(identity: str) -> str:
    """Return the beginning of a container's ID."""
    return identity[:_ID_SHOWN]


def fd_text(holder: Holder) -> str:
    """Return the fds of the first owner: `fd 7`, or `3 of its sockets` for a sum."""
    if holder.summed > 1:
        return f"{holder.summed} of its {KINDS[holder.kind]}s"
    fds = holder.owners[0].fds if holder.owners else []
    return "fd " + ",".join(map(str, fds[:3])) if fds else f"its {KINDS[holder.kind]}"


def holder_name(holder: Holder) -> str:
    """Return the process and fd of a holder, or why no process has it."""
    if holder.owners:
        return f"{process_name(holder.owners[0])} {fd_text(holder)}"
    subject = counted(holder.kind, holder.summed)
    if holder.owners_total and not holder.unowned_reason:
        return f"{subject} of a process that has ended"
    return f"{subject} that no process holds ({holder.unowned_reason or 'reason unknown'})"


def process_owner(holders: Sequence[Holder]) -> MemoryOwner:
    """Return the owner of holders of one process; if no process has them, the first holder itself."""
    first = holders[0]
    if not first.owners:
        kind = OwnerKind.SOCKET if first.kind is HolderKind.SOCKET else OwnerKind.KERNEL_OBJECT
        return MemoryOwner(kind=kind, name=(first.description or KINDS[first.kind])[: limits.MAX_SHORT_TEXT])
    owner = first.owners[0]
    fds = list(dict.fromkeys(fd for one in holders for part in one.owners[:1] for fd in part.fds))
    return MemoryOwner(
        kind=OwnerKind.PROCESS,
        name=process_name(owner)[: limits.MAX_SHORT_TEXT],
        pid=owner.pid,
        comm=owner.comm,
        fds=fds[: limits.MAX_OWNER_FDS],
        processes=max(1, first.owners_total),
        container_id=owner.container_id,
        pod_uid=owner.pod_uid,
    )
