"""A group of packets, and sums of groups (pure)."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memdiag_node.census.packets.place import Place


@dataclass(frozen=True, slots=True)
class PacketGroup:
    """Packets in the same kind of place, of the same device, destructor and kind of socket. Addresses stay inside."""

    place: Place
    packets: int
    charge_bytes: int
    head_bytes: int
    """Slab objects that are linear heads."""
    blocks: npt.NDArray[np.void]
    """PINNED_DTYPE: the blocks of pages that these packets keep, each once. Empty for SOCKET."""
    user_bytes: int = 0
    """Pages of processes and of the page cache that the packets refer to."""
    device: str = ""
    device_kind: str = ""
    interface_index: int = 0
    network_namespace: int = 0
    """The inode; 0 if not known."""
    destructor: int = 0
    """Address of the function (its first byte, not a return address in it); 0 for none."""
    socket_kind: str = ""
    """The protocol of the sockets that are charged, as the kernel names it."""
    socket: int = 0
    """The address of the struct sock, if it is the same for more than half of the packets."""
    data_bytes: int = 0
    """Bytes in the packets, for PROTOCOL_PLACES."""
    oldest_seconds: float | None = None
    """The age of the oldest time stamp."""
    is_unchanged: bool = False
    """Whether the same packets were in no queue in the earlier reading either, or those of the socket before others."""
    referred_by: str = ""
    """Where in which slab cache their list, or a pointer to them, is."""


def joined(groups: list[PacketGroup], key_of: Callable[[PacketGroup], object]) -> list[PacketGroup]:
    """These groups, the largest charge first; those with the same key are one, and those with the key None stay."""
    by_key: dict[object, list[PacketGroup]] = {}
    for number, group in enumerate(groups):
        key = key_of(group)
        by_key.setdefault(number if key is None else (key,), []).append(group)
    found = [own[0] if len(own) == 1 else _sum(own) for own in by_key.values()]
    return sorted(found, key=lambda group: -group.charge_bytes)


def summed(groups: list[PacketGroup]) -> list[PacketGroup]:
    """One group for each place."""
    cut = [
        replace(
            group, device="", device_kind="", interface_index=0, network_namespace=0,
            destructor=0, socket_kind="", socket=0, referred_by="",
        )
        for group in groups
    ]  # fmt: skip
    return sorted(joined(cut, lambda group: group.place), key=lambda group: group.place)


def _sum(groups: list[PacketGroup]) -> PacketGroup:
    """The sum of groups of one place; the rest of the first."""
    ages = [group.oldest_seconds for group in groups if group.oldest_seconds is not None]
    blocks = np.concatenate([group.blocks for group in groups])
    _, first = np.unique(blocks["page"], return_index=True)
    return replace(
        groups[0],
        packets=sum(group.packets for group in groups),
        charge_bytes=sum(group.charge_bytes for group in groups),
        head_bytes=sum(group.head_bytes for group in groups),
        blocks=blocks[first],
        user_bytes=sum(group.user_bytes for group in groups),
        data_bytes=sum(group.data_bytes for group in groups),
        socket=0,
        oldest_seconds=max(ages, default=None),
        is_unchanged=all(group.is_unchanged for group in groups),
    )
