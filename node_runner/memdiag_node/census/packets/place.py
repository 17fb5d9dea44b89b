"""Where packets can be, and pointers that prove it."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Place(IntEnum):
    """Where a packet is."""

    UNKNOWN = 0
    SOCKET = 1
    """A queue of a socket that the socket scan walks."""
    QDISC = 2
    TUN = 3
    NEIGHBOUR = 4
    REASSEMBLY = 5
    NETFILTER = 6
    KERNEL_LIST = 7
    """A list whose head is in no slab object: a CPU's backlog, a variable of the kernel or of a module."""
    OBJECT_LIST = 8
    """A list whose head is in an object of an unknown type."""
    DRIVER = 9
    """On no list, with a hardware device: the rings of a driver."""
    OTHER_CHAIN = 10
    """Linked with other packets, in no queue of a known kind, or in one that changed meanwhile."""
    REFERRED = 11
    """On no list, but an allocated object refers to it: the ring of a virtual device, or a packet kept for later."""
    UNLINKED = 12
    """In no queue of any known kind, and no object that was searched refers to it."""
    SOCKMAP = 13
    """Taken out of a socket's receive queue by a socket map, in its struct sk_psock."""
    KTLS = 14
    """In the kernel's TLS of a socket: decrypted and not read, or being decrypted."""
    SCTP = 15
    """Of an association of SCTP, in none of its socket's queues: incomplete, out of order, or to send."""


PROTOCOL_PLACES = (Place.SOCKMAP, Place.KTLS, Place.SCTP)
"""Places that belong to a socket, but are in none of the queues that the socket scan walks."""


@dataclass(frozen=True, slots=True)
class Pointers:
    """Pointers from queues of one kind to packets: for a list or a tree, to any of its packets."""

    place: Place
    packets: npt.NDArray[np.uint64]
    owners: npt.NDArray[np.uint64]
    """Of each: the address of a struct sock for SOCKET and PROTOCOL_PLACES, else of a struct net, 0 if not known."""
    devices: npt.NDArray[np.uint64]
    """Of each: the address of a struct net_device, 0 if not known."""


def pointers_to(
    place: Place,
    packets: npt.NDArray[np.uint64],
    *,
    owners: npt.NDArray[np.uint64] | None = None,
    devices: npt.NDArray[np.uint64] | None = None,
) -> Pointers:
    """Those of these words that are not 0, as pointers to packets in a place."""
    none = np.zeros(len(packets), "<u8")
    chosen = packets != 0
    return Pointers(
        place, packets[chosen], (none if owners is None else owners)[chosen],
        (none if devices is None else devices)[chosen],
    )  # fmt: skip


def array_entries(
    first: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64], entry_bytes: int
) -> npt.NDArray[np.uint64]:
    """The addresses of all entries of many arrays."""
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    result: npt.NDArray[np.uint64] = np.repeat(first, counts) + (within * entry_bytes).astype("<u8")
    return result
