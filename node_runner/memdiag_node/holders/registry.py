"""The kinds of holders besides sockets: each is one module with one function, listed here."""

from collections.abc import Callable

from memdiag_api.evidence import Owner
from memdiag_node.attempts import first_line
from memdiag_node.holders import packet_rings, page_pools, pipes, ring_buffers
from memdiag_node.holders.context import Held, HolderContext, OtherHolders
from memdiag_node.sockets.scanner import SocketScan, SocketScanner

HOLDER_KINDS: tuple[Callable[[HolderContext], list[Held]], ...] = (
    pipes.find,
    packet_rings.find,
    ring_buffers.find,
    page_pools.find,  # the last: what the others have of a pool is theirs
)


def other_holders(scanner: SocketScanner, scan: SocketScan, owner_of: Callable[[int], Owner | None]) -> OtherHolders:
    """What else holds blocks, as `scan` came upon it. A kind that fails is reported as not seen, with the reason."""
    context = HolderContext(scanner=scanner, scan=scan, owner_of=owner_of, walks=scanner.walks())
    for find in HOLDER_KINDS:
        try:
            context.found.extend(find(context))
        except Exception as error:  # whatever one kind runs into, the others are looked for
            kind = find.__module__.rpartition(".")[2].replace("_", " ")
            context.not_seen.append(f"{kind}: {first_line(error)}")
    return OtherHolders.of(context.found, context.notes())
