"""Packets that wait in a tun, tap, macvtap or ipvtap fd for its process to read them (drivers/net/tun.c, tap.c).

Each fd has a ring of pointers to packets (include/linux/ptr_ring.h). Slots from consumer_tail up to consumer_head may
still have packets that were read; every other slot is empty, or has a packet that waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.holders.context import HolderContext, kernel_blocks
from memdiag_node.holders.devices import describe_device, device_fields
from memdiag_node.holders.fields import WORD_BYTES, numbers, words
from memdiag_node.holding import Holding, sizes_bytes, unique_blocks
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.walker.walker import ITEM_DTYPE, Kind
from memdiag_node.walker.walks import Walked

_MAX_SLOTS = 1 << 22
_ATTEMPTS = 5

_RING: tuple[Field, ...] = (
    ("RING_HEAD", "ptr_ring", "consumer_head"),
    ("RING_TAIL", "ptr_ring", "consumer_tail"),
    ("RING_SIZE", "ptr_ring", "size"),
    ("RING_SLOTS", "ptr_ring", "queue"),
)
_TUN: tuple[Field, ...] = (
    ("TUN_RING", "tun_file", "tx_ring"),
    ("TUN_OF_FILE", "tun_file", "tun"),
    ("TUN_DEVICE", "tun_struct", "dev"),
)
_TAP: tuple[Field, ...] = (
    ("TAP_RING", "tap_queue", "ring"),
    ("TAP_OF_FILE", "tap_queue", "tap"),
    ("TAP_DEVICE", "tap_dev", "dev"),
)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of the rings; tun and tap may be modules, with types of their own."""
    found = device_fields(btf) | optional_offsets(btf, "HAS_POINTER_RING", _RING)
    for module, switch, wanted in (("tun", "HAS_TUN", _TUN), ("tap", "HAS_TAP", _TAP)):
        if btf.has_field(*wanted[0][1:]):
            found |= optional_offsets(btf, switch, wanted)
        else:
            found |= optional_offsets(btf.with_module(module), switch, wanted)
    return found


@dataclass(frozen=True, slots=True)
class _Kind:
    """The names of the offsets of one kind of file."""

    file: FileKind
    prefix: str
    name: str


_KINDS = (_Kind(FileKind.TUN, "TUN", "tun"), _Kind(FileKind.TAP, "TAP", "macvtap or ipvtap"))


def find(context: HolderContext) -> list[Holding]:
    """Every fd of these kinds in whose ring a packet waits."""
    held: list[Holding] = []
    if "HAS_POINTER_RING" not in context.at:
        return held
    for kind in _KINDS:
        files = context.scan.files[context.scan.files["kind"] == kind.file]
        if f"HAS_{kind.prefix}" not in context.at:
            if len(files):
                context.not_seen.append(f"queues of {kind.name} devices: this kernel does not describe its types")
            continue
        for queue in _busy(context, kind, np.unique(files["socket"])):
            pairs = [(int(file["pid"]), int(file["fd"])) for file in files[files["socket"] == queue]]
            held.append(_holding(context, kind, int(queue), pairs))
    return held


def _busy(context: HolderContext, kind: _Kind, queues: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Those of the queues whose next slot has a packet."""
    memory, at = context.scanner.source.memory, context.at
    rings = queues + np.uint64(at[f"{kind.prefix}_RING"])
    slots = words(memory, rings, at["RING_SLOTS"])
    first = memory.peek(slots + numbers(memory, rings, at["RING_HEAD"]).astype("<u8") * np.uint64(WORD_BYTES))
    busy: npt.NDArray[np.uint64] = queues[(slots != 0) & (first != 0)]
    return busy


def _holding(context: HolderContext, kind: _Kind, queue: int, pairs: list[tuple[int, int]]) -> Holding:
    memory, at = context.scanner.source.memory, context.at
    walked, is_steady = _walk(context, queue + at[f"{kind.prefix}_RING"])
    if not is_steady:
        context.not_seen.append(f"a {kind.name} queue that kept changing is counted as last seen")
    blocks = unique_blocks(np.concatenate([kernel_blocks(walked, item) for item in range(len(walked.table))]))
    packets = int(walked.table["packets"].sum())
    owners, total = context.owners(pairs)
    holder = Holder(
        kind=HolderKind.TUN_QUEUE,
        description=f"{kind.name} {_device(memory, at, kind, queue)}: {packets} packets wait to be read",
        owners=owners,
        owners_total=total,
        unread_bytes=int(walked.table["payload_bytes"].sum()),
        unread_packets=packets,
        charge_bytes=int(walked.table["charge_bytes"].sum()),
        pinned_bytes=int(sizes_bytes(blocks).sum()),
        pinned_blocks=len(blocks),
        head_bytes=int(walked.table["head_bytes"].sum()),
    )
    return Holding(holder, blocks)


def _walk(context: HolderContext, ring: int) -> tuple[Walked, bool]:
    """Walk the waiting packets, again if the ring was read from meanwhile; and whether it was not in the last walk."""
    memory, at = context.scanner.source.memory, context.at
    for attempt in range(_ATTEMPTS):
        state = _state(memory, at, ring)
        head, tail, size, slots = state
        size = min(size, _MAX_SLOTS)
        head, tail = min(head, size), min(tail, size)
        items = np.zeros(2, ITEM_DTYPE)
        items["head"] = slots + head * WORD_BYTES, slots
        items["count"] = size - head, tail
        items["stride"], items["kind"] = WORD_BYTES, Kind.PACKET_ARRAY
        walked = context.walk(items, "tun and tap queues")
        is_steady = _state(memory, at, ring) == state
        if is_steady or context.walks.late() or attempt == _ATTEMPTS - 1:
            break
    return walked, is_steady


def _state(memory: WordReader, at: Mapping[str, int], ring: int) -> tuple[int, int, int, int]:
    """Head and tail of the consumer, size, and address of the slots."""
    read = memory.peek([ring + at[name] for name in ("RING_HEAD", "RING_TAIL", "RING_SIZE", "RING_SLOTS")])
    head, tail, size, slots = map(int, read)
    return head & 0xFFFFFFFF, tail & 0xFFFFFFFF, size & 0xFFFFFFFF, slots


def _device(memory: WordReader, at: Mapping[str, int], kind: _Kind, queue: int) -> str:
    tun = int(memory.peek([queue + at[f"{kind.prefix}_OF_FILE"]])[0])
    device = int(memory.peek([tun + at[f"{kind.prefix}_DEVICE"]])[0]) if tun else 0
    return describe_device(memory, at, device) if device and "HAS_DEVICE_NAMES" in at else "without a device"
