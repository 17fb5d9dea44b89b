"""Buffers of graphics devices in the node's RAM, as far as fdinfo says so (procfs/drm_fdinfo.py).

Their class is not known: some drivers take them from shmem, others straight from the page allocator. A runner may read
the fdinfo only of processes without capabilities that it lacks; the number of the others is reported.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from memdiag_api import limits
from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.units import format_bytes
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import PINNED_DTYPE, Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.drm_fdinfo import DrmClient, parse_drm_fdinfo
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.text import printable
from memdiag_node.sockets.file_kinds import FileKind

_CLASS = "Unknown"
_MAX_FDS = 1 << 14
_MAX_FDINFO_BYTES = 1 << 14
_NAME_LENGTH = 32
_DEVICE_MEMORY = ("vram", "stolen", "lmem")
"""Prefixes of regions that are not RAM of the node."""


def fields(_btf: Btf) -> dict[str, int]:
    """None: fdinfo is text."""
    return {}


def find(context: HolderContext) -> list[Holding]:
    """The buffers of each process."""
    files = context.scan.files[context.scan.files["kind"] == FileKind.DRM]
    if len(files) > _MAX_FDS:
        context.not_seen.append(f"{len(files) - _MAX_FDS} fds of graphics devices beyond {_MAX_FDS}")
    pairs = [(int(one["pid"]), int(one["fd"])) for one in files[:_MAX_FDS]]
    clients, unreadable = drm_clients(context.proc, pairs)
    if unreadable:
        context.not_seen.append(f"graphics buffers behind {unreadable} fds: their fdinfo cannot be read")
    held = []
    for pid, (mine, fds) in clients.items():
        size_bytes = sum(ram_bytes(client) for client in mine)
        if not size_bytes:
            continue
        owners, total = context.owners((pid, fd) for fd in fds)
        drivers = ", ".join(sorted({printable(client.driver.encode(), _NAME_LENGTH) for client in mine}))
        description = f"graphics buffers of {drivers}: {format_bytes(size_bytes)} in RAM"
        holder = Holder(
            kind=HolderKind.DRM_BUFFER,
            memory_class=_CLASS,
            description=description[: limits.MAX_SENTENCE],
            owners=owners,
            owners_total=total,
            summed=len(mine),
            pinned_bytes=size_bytes,
        )
        held.append(Holding(holder, np.empty(0, PINNED_DTYPE)))
    return held


def drm_clients(
    proc: Path, pairs: Iterable[tuple[int, int]]
) -> tuple[dict[int, tuple[list[DrmClient], list[int]]], int]:
    """By pid, the clients behind these (pid, fd), each once, and the fds; and the number of fds that cannot be read."""
    found: dict[int, tuple[list[DrmClient], list[int]]] = defaultdict(lambda: ([], []))
    seen: set[tuple[str, str, str]] = set()
    unreadable = 0
    for pid, fd in pairs:
        path = proc / str(pid) / "fdinfo" / str(fd)
        try:
            with path.open("rb") as file:
                client = parse_drm_fdinfo(file.read(_MAX_FDINFO_BYTES), source=str(path))
        except FileNotFoundError:  # closed meanwhile
            continue
        except (OSError, ProcFormatError):
            unreadable += 1
            continue
        if client is None:
            continue
        clients, fds = found[pid]
        fds.append(fd)
        key = (client.driver, client.device, client.client_id)
        if key not in seen:
            seen.add(key)
            clients.append(client)
    return found, unreadable


def ram_bytes(client: DrmClient) -> int:
    """The client's resident bytes in RAM of the node, without those that other clients have too."""
    return sum(
        max(0, region.resident_bytes - region.shared_bytes)
        for name, region in client.regions.items()
        if not name.startswith(_DEVICE_MEMORY)
    )
