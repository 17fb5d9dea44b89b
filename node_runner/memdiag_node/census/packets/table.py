"""Every packet of the node, from the slabs of struct sk_buff: its links, its charge and where its data is."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_SINGLE_CACHE, _PAIR_CACHE = "skbuff_head_cache", "skbuff_fclone_cache"
_FCLONE_ORIGINAL, _FCLONE_CLONE = 1, 2  # include/linux/skbuff.h; before Linux 6.4 without names in BTF on some kernels
_BOTH_LIVE = 2
_MAX_PIECES_LIMIT = 64
FRAGMENT_BYTES = 16
"""Of a skb_frag_t, with 64-bit pointers: the page, the length and the offset."""
_CACHE_LINE = 64
_MAX_USERS = 1 << 20
_MAX_TRUESIZE = 1 << 28

_PACKET: tuple[Field, ...] = (
    ("PACKET_NEXT", "sk_buff", "next"),
    ("PACKET_PREV", "sk_buff", "prev"),
    ("PACKET_DEV", "sk_buff", "dev"),
    ("PACKET_SK", "sk_buff", "sk"),
    ("PACKET_DESTRUCTOR", "sk_buff", "destructor"),
    ("PACKET_TIME", "sk_buff", "tstamp"),
    ("PACKET_CONTROL", "sk_buff", "cb"),
    ("PACKET_LENGTH", "sk_buff", "len"),
    ("PACKET_PAGED_LENGTH", "sk_buff", "data_len"),
    ("PACKET_TRUESIZE", "sk_buff", "truesize"),
    ("PACKET_USERS", "sk_buff", "users"),
    ("PACKET_HEAD", "sk_buff", "head"),
    ("PACKET_DATA", "sk_buff", "data"),
    ("PACKET_END", "sk_buff", "end"),
    ("SHARED_PIECES", "skb_shared_info", "nr_frags"),
    ("SHARED_FRAGMENTS", "skb_shared_info", "frags"),
    ("SHARED_LIST", "skb_shared_info", "frag_list"),
    ("SHARED_REFERENCES", "skb_shared_info", "dataref"),
)
_PAIRS: tuple[Field, ...] = (
    ("PAIR_SECOND", "sk_buff_fclones", "skb2"),
    ("PAIR_REFERENCES", "sk_buff_fclones", "fclone_ref"),
)


def packet_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_packet_table` and the readers of blocks need, with HAS_PACKETS."""
    found = optional_offsets(btf, "HAS_PACKETS", _PACKET)
    if not found:
        return {}
    found["SHARED_BYTES"] = btf.size_bytes("skb_shared_info")
    fragments_bytes = found["SHARED_BYTES"] - found["SHARED_FRAGMENTS"]
    found["MAX_PIECES"] = min(_MAX_PIECES_LIMIT, max(0, fragments_bytes // FRAGMENT_BYTES))
    for name, field in (("HEAD_FRAG", "head_frag"), ("FCLONE", "fclone")):
        found[f"PACKET_{name}_BYTE"], found[f"PACKET_{name}_SHIFT"] = divmod(btf.bit_offset("sk_buff", field), 8)
    pairs = optional_offsets(btf, "HAS_PAIRS", _PAIRS)
    if pairs:
        pairs["PAIR_BYTES"] = btf.size_bytes("sk_buff_fclones")
    return found | pairs


@dataclass(frozen=True, slots=True)
class PacketTable:
    """All packets, by address. The columns have the same length."""

    address: npt.NDArray[np.uint64]
    cache: npt.NDArray[np.int16]
    """The number of the slab cache."""
    twin: npt.NDArray[np.int32]
    """The index of the other packet in the same object, if only one of the two is alive; else -1."""
    truesize: npt.NDArray[np.uint32]
    first_word: npt.NDArray[np.uint64]
    second_word: npt.NDArray[np.uint64]
    third_word: npt.NDArray[np.uint64]
    head: npt.NDArray[np.uint64]
    shared: npt.NDArray[np.uint64]
    """The address of the struct skb_shared_info, 0 for none."""
    fragment_list: npt.NDArray[np.uint64]
    """The first packet of its list of fragments, which has no queue of its own."""


def read_packet_table(census: SlabCensus, at: Mapping[str, int]) -> PacketTable:
    """Read all packets. `at` is the result of `packet_fields`, with HAS_PACKETS."""
    address, cache, pair = _all_packets(census, at)
    order = np.argsort(address)
    address, cache, pair = address[order], cache[order], pair[order]
    truesize = census.read(address, at["PACKET_TRUESIZE"], 4).astype("<u4")
    first, second, third = (census.read(address, at[f"PACKET_{name}"]) for name in ("NEXT", "PREV", "DEV"))
    head = census.read(address, at["PACKET_HEAD"])
    end = census.read(address, at["PACKET_END"], 4)
    shared = np.where(head != 0, head + end, 0).astype("<u8")
    return PacketTable(
        address=address,
        cache=cache,
        twin=_twins(pair),
        truesize=truesize,
        first_word=first,
        second_word=second,
        third_word=third,
        head=head,
        shared=shared,
        fragment_list=_if_any(census, shared, at["SHARED_LIST"]),
    )


def _all_packets(
    census: SlabCensus, at: Mapping[str, int]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """The address and the cache of each packet, and the number of its object if only one of two is alive, else -1."""
    addresses, caches, pairs = [np.empty(0, "<u8")], [np.empty(0, np.int16)], [np.empty(0, np.int64)]
    for number in census.named(_SINGLE_CACHE):
        objects = census.objects(number)
        addresses.append(objects)
        caches.append(np.full(len(objects), number, np.int16))
        pairs.append(np.full(len(objects), -1, np.int64))
    first_pair = 0
    for number in _pair_caches(census, at):
        objects = census.objects(number)
        objects, both = _packet_pairs(census, at, objects)
        seconds = objects + np.uint64(at["PAIR_SECOND"])
        has_second = _fclone(census, at, seconds) == _FCLONE_CLONE
        own = np.where(both, -1, np.arange(len(objects)) + first_pair)
        first_pair += len(objects)
        addresses += [objects, seconds[has_second]]
        pairs += [own, own[has_second]]
        caches.append(np.full(len(objects) + int(has_second.sum()), number, np.int16))
    return np.concatenate(addresses), np.concatenate(caches), np.concatenate(pairs)


def _pair_caches(census: SlabCensus, at: Mapping[str, int]) -> list[int]:
    """The cache of pairs of packets, or those that it may be merged with: they have the same distance of objects."""
    if "HAS_PAIRS" not in at:
        return []
    named = census.named(_PAIR_CACHE)
    if named:
        return named
    stride = -(-at["PAIR_BYTES"] // _CACHE_LINE) * _CACHE_LINE
    return [
        number
        for number, cache in enumerate(census.caches)
        if cache.stride_bytes == stride and "kmalloc" not in cache.name
    ]


def _packet_pairs(
    census: SlabCensus, at: Mapping[str, int], objects: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Those of the objects that are pairs of packets, and whether both are alive: a merged cache has other objects."""
    references = census.read(objects, at["PAIR_REFERENCES"], 4)
    users = census.read(objects, at["PACKET_USERS"], 4)
    truesize = census.read(objects, at["PACKET_TRUESIZE"], 4)
    is_pair = (
        (references >= 1)
        & (references <= _BOTH_LIVE)
        & (_fclone(census, at, objects) == _FCLONE_ORIGINAL)
        & (users < _MAX_USERS)
        & (truesize < _MAX_TRUESIZE)
        & (census.read(objects, at["PACKET_HEAD"]) >= np.uint64(census.linear_base))
    )
    return objects[is_pair], references[is_pair] == _BOTH_LIVE


def _fclone(census: SlabCensus, at: Mapping[str, int], packets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    bits: npt.NDArray[np.uint64] = census.read(packets, at["PACKET_FCLONE_BYTE"], 1)
    return bits >> np.uint64(at["PACKET_FCLONE_SHIFT"]) & np.uint64(3)


def _twins(pair: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """From the number of the object of each packet, -1 for none: the index of the other packet with the same one."""
    twin = np.full(len(pair), -1, np.int32)
    single = np.flatnonzero(pair >= 0)
    single = single[np.argsort(pair[single], kind="stable")]
    same = np.flatnonzero(pair[single[:-1]] == pair[single[1:]])
    twin[single[same]], twin[single[same + 1]] = single[same + 1], single[same]
    return twin


def _if_any(census: SlabCensus, addresses: npt.NDArray[np.uint64], offset_bytes: int) -> npt.NDArray[np.uint64]:
    """A word of each structure, 0 for those without an address."""
    values = np.zeros(len(addresses), "<u8")
    known = addresses != 0
    values[known] = census.read(addresses[known], offset_bytes)
    return values
