"""The kinds of holders besides sockets: each is one module with one function, listed here."""

from collections.abc import Callable

from memdiag_api.evidence import Owner
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.holders.context import Held, HolderContext, OtherHolders
from memdiag_node.holders.sockets import SocketScan, SocketScanner

HOLDER_KINDS: tuple[Callable[[HolderContext], list[Held]], ...] = (
    pipes.find,
    packet_rings.find,
    ring_buffers.find,
    page_pools.find,  # the last: what the others have of a pool is theirs
)


def other_holders(scanner: SocketScanner, scan: SocketScan, owner_of: Callable[[int], Owner | None]) -> OtherHolders:
    """What else holds blocks, as `scan` came upon it. Raises BpfError when the kernel stops answering."""
    context = HolderContext(scanner=scanner, scan=scan, owner_of=owner_of, walks=scanner.walks())
    for find in HOLDER_KINDS:
        context.found.extend(find(context))
    return OtherHolders.of(context.found, context.not_seen)
