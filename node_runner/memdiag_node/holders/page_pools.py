"""Page pools: pages that network drivers keep for receiving, in their rings or in flight (net/core/page_pool.c).

Netlink lists them too (family netdev, page-pool-get, Linux 6.7), but only those of the caller's own network namespace,
and a runner pod has its own one, without any driver. The same lists, one at each device, are read here from every
network namespace. Pools without a device (veth with XDP) are on no list: they are found through their pages, in queues
or among those that the trace saw them take.

A pool does not list its pages. It counts those that it took and has not returned (page_pool_inflight). Its pages that
were found in other holders, mainly in queues of sockets, are subtracted: those holders keep them from being returned.
Pages that it took while the trace ran are known from the trace, and by the pool's address in them.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.units import format_bytes
from memdiag_node.holders.context import HolderContext
from memdiag_node.holders.devices import describe_device, device_fields
from memdiag_node.holding import PINNED_DTYPE, Holding, by_size, pinned_blocks, sizes_bytes, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, offsets, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import Fact, KernelMemory
from memdiag_node.sockets.scan import SocketScan

_MAX_ORDER = 16
_STARTS = 4_096
_SIGNATURE, _SIGNATURE_MASK = 0xDEAD_0000_0000_0040, 0xFFFF_0000_0000_007C
"""PP_SIGNATURE: include/linux/poison.h, CONFIG_ILLEGAL_POINTER_VALUE. The bits between may hold an index (6.16)."""


_POOL: tuple[Field, ...] = (
    ("POOL_TAKEN", "page_pool", "pages_state_hold_cnt"),
    ("POOL_GIVEN_BACK", "page_pool", "pages_state_release_cnt"),
    ("POOL_ORDER", "page_pool", "p.order"),
)
_DEVICES: tuple[Field, ...] = (
    ("NET_DEVICES", "net", "dev_base_head"),
    ("DEVICE_ENTRY", "net_device", "dev_list"),
    ("DEVICE_OBJECT", "net_device", "dev"),
    ("POOL_OBJECT", "page_pool", "p.dev"),
)
_DEVICE_POOLS: tuple[Field, ...] = (  # 6.7, 083772c9f972
    ("DEVICE_POOLS", "net_device", "page_pools"),
    ("POOL_ENTRY", "page_pool", "user.list"),
    ("POOL_ID", "page_pool", "user.id"),
    ("POOL_DETACH_TIME", "page_pool", "user.detach_time"),
    ("POOL_DEVICE", "page_pool", "slow.netdev"),
)
_SIGNED: tuple[Field, ...] = (("PAGE_POOL_MAGIC", "page", "pp_magic"),)
_PROVIDED: tuple[Field, ...] = (("POOL_PROVIDER", "page_pool", "mp_priv"),)  # 6.11: memory of devices or processes
_NETS: tuple[Field, ...] = (
    ("SOCK_NET", "sock", "__sk_common.skc_net"),
    ("NET_LIST", "net", "list"),
    ("NET_OPERATIONS", "net", "ns.ops"),
)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets in pools, devices and network namespaces that are read here."""
    pool_of_page = ("PAGE_POOL", "page" if btf.has_field("page", "pp") else "netmem_desc", "pp")
    return (
        offsets(btf, _NETS)
        | device_fields(btf)
        | optional_offsets(btf, "HAS_PAGE_POOL", (pool_of_page, *_POOL))
        | optional_offsets(btf, "HAS_DEVICES", _DEVICES)
        | optional_offsets(btf, "HAS_DEVICE_POOLS", _DEVICE_POOLS)
        | optional_offsets(btf, "HAS_PAGE_SIGNATURE", _SIGNED)
        | optional_offsets(btf, "HAS_POOL_PROVIDER", _PROVIDED)
    )


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool's own fields."""

    pages: int
    """Blocks of `order` that it took and did not return."""
    order: int
    is_kernel_memory: bool
    description: str


def find(context: HolderContext) -> list[Holding]:
    """Every page pool with pages out. Call it last: blocks in other holders do not count for the pool."""
    memory, at = context.scanner.source.memory, context.at
    if "HAS_PAGE_POOL" not in at:
        return []
    devices = network_devices(memory, at, context.scan)
    listed = _pools_of_devices(memory, at, devices)
    queued = _all_blocks(context.scan, context.found)
    pool_of = pools_of(memory, at, queued["page"], listed)
    held = []
    for address in map(int, np.union1d(listed, pool_of[pool_of != 0])):
        pool = _read(memory, at, address, devices)
        if pool is not None and pool.is_kernel_memory:
            held.append(_held(pool, address, queued[pool_of == address]))
    return held


def add_traced(
    memory: KernelMemory,
    at: Mapping[str, int],
    scan: SocketScan,
    others: Sequence[Holding],
    traced: npt.NDArray[np.void],
) -> list[Holding]:
    """Add to pools the blocks that the trace saw them take (fields page and order), unless another holder has them.

    `others` are all holders except the sockets; `at` has what `fields` returned. Pools that only these blocks lead to
    are added.
    """
    if "HAS_PAGE_POOL" not in at or not len(traced):
        return list(others)
    taken = _all_blocks(scan, others)
    mine = traced[~np.isin(traced["page"], taken["page"])]
    known = {held.pool: number for number, held in enumerate(others) if held.pool}
    pool_of = pools_of(memory, at, mine["page"], np.fromiter(known, "<u8", len(known)))
    devices = network_devices(memory, at, scan)
    found = list(others)
    for address in map(int, np.unique(pool_of[pool_of != 0])):
        blocks = unique_blocks(pinned_blocks(mine[pool_of == address]))
        if address in known:
            found[known[address]] = replace(found[known[address]], blocks=blocks)
        elif (pool := _read(memory, at, address, devices)) is not None and pool.is_kernel_memory:
            found.append(replace(_held(pool, address, blocks[:0]), blocks=blocks))
    return by_size(found)


def _all_blocks(scan: SocketScan, others: Sequence[Holding]) -> npt.NDArray[np.void]:
    """Each block of the sockets and these holders once, as PINNED_DTYPE."""
    return unique_blocks(np.concatenate([pinned_blocks(scan.blocks), *(held.blocks for held in others)]))


def _held(pool: _Pool, address: int, queued: npt.NDArray[np.void]) -> Holding:
    """The pool as a holder, without its blocks in other holders."""
    block_bytes = mmap.PAGESIZE << pool.order
    size_bytes = pool.pages * block_bytes
    queued_bytes = int(sizes_bytes(queued).sum())
    pinned_bytes = max(0, size_bytes - queued_bytes)
    elsewhere = f"{format_bytes(queued_bytes)} of it in other holders"
    holder = Holder(
        kind=HolderKind.PAGE_POOL,
        description=f"{pool.description}: {format_bytes(size_bytes)}, {elsewhere}",
        unowned_reason="the kernel's own: buffers for receiving packets",
        charge_bytes=size_bytes,
        pinned_bytes=pinned_bytes,
        pinned_blocks=pinned_bytes // block_bytes,
    )
    return Holding(holder, np.empty(0, PINNED_DTYPE), address)


def pools_of(
    memory: KernelMemory, at: Mapping[str, int], pages: npt.NDArray[np.uint64], listed: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The address of the pool that each block (its first struct page) belongs to, 0 for none.

    The word is only a pool's address if the page is signed, or, if this kernel signs differently, the pool is `listed`.
    """
    pools = memory.peek(pages + np.uint64(at["PAGE_POOL"]))
    if "HAS_PAGE_SIGNATURE" in at:
        magic = memory.peek(pages + np.uint64(at["PAGE_POOL_MAGIC"]))
        pools[magic & np.uint64(_SIGNATURE_MASK) != _SIGNATURE] = 0
    else:
        pools[~np.isin(pools, listed)] = 0
    return pools


def network_devices(memory: KernelMemory, at: Mapping[str, int], scan: SocketScan) -> npt.NDArray[np.uint64]:
    """Every device (struct net_device) of every network namespace. None if no process has a socket to start from."""
    if "HAS_DEVICES" not in at or "HAS_DEVICE_NAMES" not in at:
        return np.empty(0, "<u8")
    # The namespaces are on one list, which any socket leads to.
    own = np.unique(memory.peek(np.unique(scan.owners["socket"][:_STARTS]) + np.uint64(at["SOCK_NET"])))
    own = own[own != 0]
    nets = np.union1d(own, list_entries(memory, own[:1] + np.uint64(at["NET_LIST"])) - np.uint64(at["NET_LIST"]))
    operations = memory.peek(nets + np.uint64(at["NET_OPERATIONS"]))
    nets = nets[operations == memory.fact(Fact.NET_OPERATIONS)]  # the head of the list is not in a namespace
    return list_entries(memory, nets + np.uint64(at["NET_DEVICES"])) - np.uint64(at["DEVICE_ENTRY"])


def _pools_of_devices(
    memory: KernelMemory, at: Mapping[str, int], devices: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """The pools on the list of any device."""
    if "HAS_DEVICE_POOLS" not in at:
        return np.empty(0, "<u8")
    return list_entries(memory, devices + np.uint64(at["DEVICE_POOLS"])) - np.uint64(at["POOL_ENTRY"])


def _read(memory: KernelMemory, at: Mapping[str, int], address: int, devices: npt.NDArray[np.uint64]) -> _Pool | None:
    """None if it is gone, or has no pages out."""

    def number(field: str) -> int:
        return int(memory.peek([address + at[field]])[0])

    taken, given_back = number("POOL_TAKEN"), number("POOL_GIVEN_BACK")
    pages = (taken - given_back) & 0xFFFFFFFF  # both wrap around
    order = number("POOL_ORDER") & 0xFFFFFFFF
    if not 0 < pages < 1 << 31 or order > _MAX_ORDER:
        return None
    return _Pool(
        pages=pages,
        order=order,
        is_kernel_memory="HAS_POOL_PROVIDER" not in at or not number("POOL_PROVIDER"),
        description=_describe(memory, at, address, devices),
    )


def _describe(memory: KernelMemory, at: Mapping[str, int], address: int, devices: npt.NDArray[np.uint64]) -> str:
    """Describe a pool as netlink does: its id and its device.

    A pool that is on no device's list may still belong to a network device: the one that its pages are mapped for. veth
    has such pools.
    """
    number = device = detached = 0
    if "HAS_DEVICE_POOLS" in at:
        number, device, detached = map(
            int, memory.peek([address + at[field] for field in ("POOL_ID", "POOL_DEVICE", "POOL_DETACH_TIME")])
        )
    if "HAS_DEVICES" in at and not device:
        candidate = int(memory.peek([address + at["POOL_OBJECT"]])[0]) - at["DEVICE_OBJECT"]
        device = candidate if candidate in devices.tolist() else 0
    text = f"page pool {number & 0xFFFFFFFF}" if number else "page pool"
    text += f" of {describe_device(memory, at, device)}" if device else " of no known network device"
    return f"{text}, detached from it" if detached else text
