"""The kinds of holders besides sockets: each is one module with one function, listed here."""

from collections.abc import Callable

from memdiag_node.errors import first_line
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.holders.context import HolderContext
from memdiag_node.holding import Holding, by_size
from memdiag_node.processes import OwnerOf
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner

HOLDER_KINDS: tuple[Callable[[HolderContext], list[Holding]], ...] = (
    pipes.find,
    packet_rings.find,
    ring_buffers.find,
    page_pools.find,  # the last: what the others have of a pool is theirs
)


def other_holders(scanner: SocketScanner, scan: SocketScan, owner_of: OwnerOf) -> tuple[list[Holding], list[str]]:
    """What else holds blocks, as `scan` came upon it, most pinned bytes first; and what could not be seen, in words.

    A kind that fails is part of the latter, with the reason.
    """
    context = HolderContext(scanner=scanner, scan=scan, owner_of=owner_of, walks=scanner.walks())
    for find in HOLDER_KINDS:
        try:
            context.found.extend(find(context))
        except Exception as error:  # whatever one kind runs into, the others are looked for
            kind = find.__module__.rpartition(".")[2].replace("_", " ")
            context.not_seen.append(f"{kind}: {first_line(error)}")
    return by_size(context.found), context.notes()
