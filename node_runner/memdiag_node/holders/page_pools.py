"""Page pools: pages that network drivers keep for receiving, in their rings or in flight (net/core/page_pool.c).

Netlink lists them too (family netdev, page-pool-get, Linux 6.7), but only those of the caller's own network namespace,
and a runner pod has one of its own without any driver in it. The same lists, one at each device, are read here from
every network namespace. Pools of no device (veth with XDP) are on no list: they are found by pages of theirs in queues.

A pool does not know its pages. What it took and has not given back is counted (page_pool_inflight); pages of it that
were found in sockets' queues are the sockets', which keep them from going back, and are taken off.
"""

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.ebpf.kernel_lists import list_entries
from memdiag_node.ebpf.sockets import SocketSource
from memdiag_node.holders.context import Held, HolderContext
from memdiag_node.holders.sockets import PINNED_DTYPE, SocketScan
from memdiag_node.procfs.text import printable

_MAX_ORDER = 16
_NAME_BYTES = 16  # include/uapi/linux/if.h, IFNAMSIZ
_SIGNATURE, _SIGNATURE_MASK = 0xDEAD_0000_0000_0040, 0xFFFF_0000_0000_007C
"""PP_SIGNATURE: include/linux/poison.h, CONFIG_ILLEGAL_POINTER_VALUE. The bits between may hold an index (6.16)."""


@dataclass(frozen=True, slots=True)
class _Pool:
    """What a pool says of itself."""

    pages: int
    """Blocks of `order` that it took and did not give back."""
    order: int
    is_kernel_memory: bool
    description: str


def find(context: HolderContext) -> list[Held]:
    """Every page pool with pages out."""
    source = context.scanner.source
    if "HAS_PAGE_POOL" not in source.offset:
        return []
    listed = _pools_of_devices(source, context.scan)
    _, first = np.unique(context.scan.blocks["page"], return_index=True)
    queued = context.scan.blocks[first]
    pool_of = pools_of(source, queued["page"], listed)
    held = []
    for address in map(int, np.union1d(listed, pool_of[pool_of != 0])):
        pool = _read(source, address)
        if pool is None or not pool.is_kernel_memory:
            continue
        size_bytes = pool.pages * (mmap.PAGESIZE << pool.order)
        queued_bytes = int(SocketScan.sizes_bytes(queued[pool_of == address]).sum())
        pinned_bytes = max(0, size_bytes - queued_bytes)
        description = f"{pool.description}: {size_bytes} bytes, of which {queued_bytes} lie in sockets' queues"
        held.append(
            Held(
                Holder(
                    kind=HolderKind.PAGE_POOL,
                    description=description,
                    unowned_reason="the kernel's own: buffers to receive packets in",
                    pinned_bytes=pinned_bytes,
                    pinned_blocks=pinned_bytes // (mmap.PAGESIZE << pool.order),
                ),
                np.empty(0, PINNED_DTYPE),
            )
        )
    return held


def pools_of(
    source: SocketSource, pages: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The address of the pool that each block (its first struct page) belongs to, 0 for none.

    The word is only a pool's if the page is signed; where this kernel signs in another way, if the pool is `listed`.
    """
    at = source.offset
    pools = source.peek(pages + np.uint64(at["PAGE_POOL"]))
    if "HAS_PAGE_SIGNATURE" in at:
        magic = source.peek(pages + np.uint64(at["PAGE_POOL_MAGIC"]))
        pools[magic & np.uint64(_SIGNATURE_MASK) != _SIGNATURE] = 0
    else:
        pools[~np.isin(pools, listed)] = 0
    return pools


def network_devices(source: SocketSource, scan: SocketScan) -> npt.NDArray[np.uint64]:
    """Every device (struct net_device) of every network namespace. None when no process has a socket to start from."""
    at = source.offset
    own = np.unique(source.peek(np.unique(scan.owners["socket"]) + np.uint64(at["SOCK_NET"])))
    own = own[own != 0]
    nets = np.union1d(own, list_entries(source, own[:1] + np.uint64(at["NET_LIST"])) - np.uint64(at["NET_LIST"]))
    operations = source.peek(nets + np.uint64(at["NET_OPERATIONS"]))
    nets = nets[operations == source.fact("net_operations")]  # the head of the list is in no namespace
    return list_entries(source, nets + np.uint64(at["NET_DEVICES"])) - np.uint64(at["DEVICE_ENTRY"])


def _pools_of_devices(source: SocketSource, scan: SocketScan) -> npt.NDArray[np.uint64]:
    """The pools on the list of any device."""
    at = source.offset
    if "HAS_DEVICE_POOLS" not in at:
        return np.empty(0, "<u8")
    devices = network_devices(source, scan)
    return list_entries(source, devices + np.uint64(at["DEVICE_POOLS"])) - np.uint64(at["POOL_ENTRY"])


def _read(source: SocketSource, address: int) -> _Pool | None:
    """None when it is gone, or has nothing out."""
    at = source.offset

    def number(field: str) -> int:
        return int(source.peek([address + at[field]])[0])

    taken, given_back = number("POOL_TAKEN"), number("POOL_GIVEN_BACK")
    pages = (taken - given_back) & 0xFFFFFFFF  # both wrap around
    order = number("POOL_ORDER") & 0xFFFFFFFF
    if not 0 < pages < 1 << 31 or order > _MAX_ORDER:
        return None
    return _Pool(
        pages=pages,
        order=order,
        is_kernel_memory="HAS_POOL_PROVIDER" not in at or not number("POOL_PROVIDER"),
        description=_describe(source, address) if "HAS_DEVICE_POOLS" in at else "page pool",
    )


def _describe(source: SocketSource, address: int) -> str:
    """As netlink names a pool: its id and its device."""
    at = source.offset
    number, device, detached = map(
        int, source.peek([address + at[field] for field in ("POOL_ID", "POOL_DEVICE", "POOL_DETACH_TIME")])
    )
    text = f"page pool {number & 0xFFFFFFFF}"
    if device:
        words = source.peek([device + at["DEVICE_NAME"] + word for word in range(0, _NAME_BYTES, 8)])
        index, net = map(int, source.peek([device + at["DEVICE_INDEX"], device + at["DEVICE_NET"]]))
        namespace = int(source.peek([net + at["NET_INODE"]])[0]) & 0xFFFFFFFF
        name = printable(words.tobytes().split(b"\0")[0], _NAME_BYTES)
        text += f" of {name}, interface {index & 0xFFFFFFFF} in network namespace {namespace}"
    else:
        text += " of no listed device"
    return f"{text}, detached from its device" if detached else text
