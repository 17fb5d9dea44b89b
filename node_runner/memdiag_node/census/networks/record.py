"""The network namespaces in the document: zombies first, each with what keeps it (pure)."""

from collections import Counter

import numpy as np

from memdiag_api import limits
from memdiag_api.census.namespaces import NetworkNamespace, NetworkNamespaces
from memdiag_node.census.networks.namespaces import Namespaces
from memdiag_node.kernel.tcp_states import TCP_STATES
from memdiag_node.procfs.text import printable

_DEVICE_NAME_BYTES = 16
_KINDS_NAMED = 4


def namespaces_record(found: Namespaces) -> NetworkNamespaces:
    """The record of all namespaces; those beyond the limit are only counted.

    In a sample of the slabs, no namespace is called a zombie: what refers to it may be in the part that was not read.
    """
    table = found.table
    zombie = is_zombie(found)
    order = np.lexsort((table["inode"], -table["size_bytes"], ~zombie))
    scale = 1 / max(found.sampled_share, 1e-6)
    return NetworkNamespaces(
        total=len(table),
        zombies=int(zombie.sum()),
        zombie_bytes=int(table["size_bytes"][zombie].sum()),
        listed=[_record(found, number, zombie[number], scale) for number in order[: limits.MAX_NAMESPACES].tolist()],
        sampled_share=found.sampled_share,
    )


def is_zombie(found: Namespaces) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether no process, no fd and no mount refers to each namespace."""
    table = found.table
    held = table["processes"].astype(np.int64) + table["files"] + table["mounts"] + table["open_sockets"]
    zombie: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (
        (held == 0) & (table["is_initial"] == 0) & (table["is_listed_by_nsfs"] == 0) & (found.sampled_share >= 1)
    )
    return zombie


def _record(found: Namespaces, number: int, is_zombie: np.bool_, scale: float) -> NetworkNamespace:
    row = found.table[number]
    names = [printable(name, _DEVICE_NAME_BYTES) for name in found.device_names[number][: limits.MAX_NAMESPACE_DEVICES]]
    return NetworkNamespace(
        inode=int(row["inode"]),
        is_zombie=bool(is_zombie),
        kept_by=kept_by(row, _closed_sockets(found, row))[: limits.MAX_SHORT_TEXT],
        size_bytes=round(scale * int(row["size_bytes"])),
        processes=round(scale * int(row["processes"])),
        files=round(scale * int(row["files"])),
        mounts=int(row["mounts"]),
        sockets=round(scale * int(row["sockets"])),
        open_sockets=round(scale * int(row["open_sockets"])),
        packets=round(scale * int(row["packets"])),
        devices=int(row["devices"]),
        device_names=names,
    )


def _closed_sockets(found: Namespaces, row: np.void) -> Counter[str]:
    """The sockets without a file that keep a namespace, by what they are."""
    table = found.sockets.table
    mine = (table["network"] == row["network"]) & (table["holds_network"] != 0) & (table["has_file"] == 0)
    return Counter(closed_socket(one, found.sockets.protocols.get(int(one["protocol"]), "")) for one in table[mine])


def closed_socket(row: np.void, protocol: str) -> str:
    """What a socket without a file is: "TCP in FIN-WAIT-1", "UDP closed with packets that still wait"."""
    if not row["references"]:
        return f"{protocol} closed with packets that still wait"
    if protocol.removesuffix("v6") in {"TCP", "MPTCP"}:
        return f"{protocol} in {TCP_STATES.get(int(row['state']), 'an unknown state')}"
    return f"{protocol} without a file"


def kept_by(row: np.void, closed: Counter[str]) -> str:
    """What keeps a namespace from being removed. `row` is one of NAMESPACE_DTYPE, `closed` its sockets by kind."""
    if row["is_initial"]:
        return "the kernel: it is the initial one"
    if not row["references"]:
        return f"nothing: it is being removed, {_count(int(row['passive']), 'reference')} to its memory left"
    # While a process is there, its sockets keep nothing that would not be there anyway.
    reasons = [_count(int(row["processes"]), "process", "processes")] if row["processes"] else []
    if row["files"]:
        reasons.append(f"{_count(int(row['files']), 'open file')} of it")
    if row["mounts"]:
        reasons.append(f"{_count(int(row['mounts']), 'mount')} of it")
    if row["open_sockets"] and not row["processes"]:
        reasons.append(_count(int(row["open_sockets"]), "open socket"))
    if closed and not row["processes"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in closed.most_common(_KINDS_NAMED))
        reasons.append(f"{_count(closed.total(), 'socket')} that no process has ({kinds})")
    others = int(row["references"]) - int(row["counted_references"])
    if others > 0 and not row["processes"]:
        reasons.append(f"{_count(others, 'reference')} that no known object has")
    return "; ".join(reasons) or "unknown"


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
