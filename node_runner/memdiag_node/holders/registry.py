"""The kinds of holders besides sockets: each is one module, listed here."""

from collections.abc import Mapping
from typing import Protocol

from memdiag_node.errors import first_line
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import Holding, by_size
from memdiag_node.kernel.btf import Btf
from memdiag_node.processes import OwnerOf
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner


class HolderModule(Protocol):
    """What the module of a kind has."""

    def fields(self, btf: Btf, /) -> dict[str, int]:
        """What `find` needs to know of the running kernel, by name; what it lacks is left out."""
        ...

    def find(self, context: HolderContext, /) -> list[Holding]:
        """Every holder of the kind; `context.at` has what `fields` gave."""
        ...


_KINDS: Mapping[str, HolderModule] = {
    "pipes": pipes,
    "packet rings": packet_rings,
    "ring buffers": ring_buffers,
    "page pools": page_pools,  # the last: what the others have of a pool is theirs
}


def holder_fields(btf: Btf) -> dict[str, int]:
    """What all kinds need to know of the running kernel, taken beforehand so that no BTF need stay in memory."""
    return {name: value for kind in _KINDS.values() for name, value in kind.fields(btf).items()}


def other_holders(
    scanner: SocketScanner, scan: SocketScan, owner_of: OwnerOf, at: Mapping[str, int]
) -> tuple[list[Holding], list[str]]:
    """What else holds blocks, as `scan` found it, most pinned bytes first; and what could not be seen, in words.

    `at` is that of `holder_fields`. A kind that fails is part of the latter, with the reason.
    """
    context = HolderContext(scanner=scanner, scan=scan, owner_of=owner_of, walks=scanner.walks(), at=at)
    for name, kind in _KINDS.items():
        try:
            context.found.extend(kind.find(context))
        except Exception as error:  # whatever one kind runs into, the others are looked for
            context.not_seen.append(f"{name}: {first_line(error)}")
    return by_size(context.found), context.notes()
