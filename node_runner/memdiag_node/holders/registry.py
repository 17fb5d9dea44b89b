"""The kinds of holders other than sockets: each is one module, listed here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from memdiag_node.census.findings import ObjectFindings
from memdiag_node.errors import first_line
from memdiag_node.holders import (
    bpf_maps,
    bpf_programs,
    drm_buffers,
    event_queues,
    ftrace_buffers,
    io_urings,
    packet_queues,
    packet_rings,
    page_pools,
    pipes,
    ring_buffers,
    tun_queues,
    xdp_sockets,
)
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import Holding, by_size
from memdiag_node.kernel.btf import Btf
from memdiag_node.processes import OwnerOf
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner


class HolderModule(Protocol):
    """The interface of a kind's module."""

    def fields(self, btf: Btf, /) -> dict[str, int]:
        """The kernel offsets that `find` needs, by name; those that the kernel lacks are left out."""
        ...

    def find(self, context: HolderContext, /) -> list[Holding]:
        """Every holder of the kind; `context.at` has what `fields` returned."""
        ...


_KINDS: Mapping[str, HolderModule] = {
    "pipes": pipes,
    "packet rings": packet_rings,
    "ring buffers": ring_buffers,
    "tun and tap queues": tun_queues,
    "io_urings": io_urings,
    "ftrace buffers": ftrace_buffers,
    "AF_XDP sockets": xdp_sockets,
    "event queues": event_queues,
    "graphics buffers": drm_buffers,
    "BPF maps": bpf_maps,
    "BPF programs": bpf_programs,
    "packet queues": packet_queues,  # after those that have some of the packets
    "page pools": page_pools,  # last: blocks of a pool in other holders count as theirs
}


def holder_fields(btf: Btf) -> dict[str, int]:
    """The kernel offsets that all kinds need, taken beforehand so that the BTF need not stay in memory."""
    return {name: value for kind in _KINDS.values() for name, value in kind.fields(btf).items()}


def other_holders(
    scanner: SocketScanner,
    scan: SocketScan,
    owner_of: OwnerOf,
    at: Mapping[str, int],
    *,
    proc: Path = Path("/proc"),
    objects: ObjectFindings | None = None,
) -> tuple[list[Holding], list[str]]:
    """All other holders at the time of `scan`, most bytes first; and what could not be seen, as text.

    `at` is the result of `holder_fields`, `objects` what the census of kernel objects found, if it was taken. A kind
    that fails is part of what could not be seen, with the reason.
    """
    context = HolderContext(
        scanner=scanner, scan=scan, owner_of=owner_of, walks=scanner.walks(), proc=proc, at=at, objects=objects
    )
    for name, kind in _KINDS.items():
        try:
            context.found.extend(kind.find(context))
        except Exception as error:  # if one kind fails, the others are still searched
            context.not_seen.append(f"{name}: {first_line(error)}")
    return by_size(context.found), context.notes()
