"""The peers of connections, summed up by address (pure)."""

from collections.abc import Iterable

from memdiag_api import limits
from memdiag_api.evidence import Peer


def largest_peers(peers: Iterable[Peer]) -> list[Peer]:
    """Sum up peers by address and port, largest first; the first MAX_PEERS of them.

    Connections of clients have a port of their own each: then the ports are left out.
    """
    by_place: dict[str, Peer] = {}
    by_host: dict[str, Peer] = {}
    for peer in peers:
        _add(by_place, peer.address, peer)
        _add(by_host, host_of(peer.address), peer)
    found = by_host if len(by_place) > 2 * len(by_host) else by_place
    return sorted(found.values(), key=lambda one: -one.size_bytes)[: limits.MAX_PEERS]


def host_of(address: str) -> str:
    """Return an address without its port: 192.0.2.1:80, [2001:db8::1]:80 or one that has none."""
    host, colon, _ = address.rpartition(":")
    return address if address.endswith("]") or not colon else host


def _add(found: dict[str, Peer], address: str, peer: Peer) -> None:
    known = found.get(address)
    found[address] = Peer(
        address=address,
        connections=peer.connections + (known.connections if known else 0),
        size_bytes=peer.size_bytes + (known.size_bytes if known else 0),
    )
