"""Walking kernel lists of packets and pages to their last page (walker.bpf.c).

The walker returns records in the order of the worklist; other packages see only the tally of each queue.
"""

import errno
import itertools
import mmap
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.layout import Field, block_layout, enum_defines, offsets, optional_offsets
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.programs import RunnableProgram
from memdiag_node.resource import Resource


class Kind(IntEnum):
    """The kind of an item of the worklist."""

    PACKET_LIST = 0
    """struct sk_buff_head."""
    PACKET_TREE = 1
    """struct rb_root of sk_buffs."""
    PACKET_CHAIN = 2
    """Pointer to an sk_buff, linked by `next` until NULL."""
    ACCEPT = 3
    """Pointer to a request_sock, linked by `dl_next` until NULL. This kind and those before it have a first member."""
    TABLE = 4
    """`count` buckets, `stride` bytes apart, of sockets linked by a node `node` bytes inside."""
    NETS = 5
    """list_head inside a struct net, on the list of all network namespaces: returns the tables of each."""
    BLOCKS = 6
    """`count` pointers, `stride` bytes apart, each to a block: into the linear map, or with ITEM_PAGES to its page."""
    PIPE = 7
    """struct pipe_inode_info."""
    PACKET_ARRAY = 8
    """`count` slots, `stride` bytes apart, with a pointer to an sk_buff or to an XDP frame (low bit set), or NULL."""
    LINKED = 9
    """Pointer to the first of `count` list entries. `node` bytes from its link, each points into the linear map."""


class RecordType(IntEnum):
    """The kind of a record."""

    PACKET = 1
    IDENTITY = 2
    FRAGMENT = 3
    HEAD = 4
    SOCKET = 5
    NET = 6
    END = 7


class Table(IntEnum):
    """A hash table of a network namespace."""

    UNIX = 0
    TCP = 1
    UDP = 2
    PACKET = 3


class Status(IntEnum):
    """How the walk of an item ended; 0 for an item that was not reached."""

    NOT_REACHED = 0
    WHOLE = 1
    RACE = 2
    FAULT = 3
    TOO_LONG = 4
    TOO_DEEP = 5


class Found(IntEnum):
    """How the walk found a socket."""

    LISTED = 1
    UNACCEPTED = 2
    IN_FLIGHT = 3


ITEM_UNIX, ITEM_EMBRYOS, ITEM_PAGES = 1, 2, 4
"""Flags of an item.

ITEM_UNIX: packets carry a unix_skb_parms with files in flight. ITEM_EMBRYOS: they are a UNIX listener's, and each
represents a socket that has not been accepted yet. ITEM_PAGES: pointers are those of struct pages.
"""
IS_MEMBER, UNREADABLE, IS_USER, IS_DEVICE, IS_SLAB = 1, 2, 4, 8, 16
"""Flags of a record.

IS_MEMBER, of PACKET: part of a frag list, counted in its head's len and truesize. UNREADABLE, of PACKET, FRAGMENT: its
target could not be read. IS_USER, of FRAGMENT, HEAD: a page of a process or of the page cache. IS_DEVICE, of
FRAGMENT: device memory (net_iov), without a page. IS_SLAB, of HEAD: from kmalloc, which the kernel counts as slab even
if it uses whole pages.
"""
HEAD_UNIT_BYTES = 16
IDENTITIES = 4
"""Packets whose address and length are recorded as a hash, so that a later walk recognizes the queue."""

ITEM_DTYPE = np.dtype(
    [
        ("head", "<u8"),
        ("count", "<u4"),
        ("stride", "<u2"),
        ("node", "<u2"),
        ("kind", "u1"),
        ("flags", "u1"),
        ("order", "u1"),
        ("consumed", "u1"),
        ("unused", "u1", 4),
    ]
)
RECORD_DTYPE = np.dtype([("value", "<u8"), ("item", "<u4"), ("type", "u1"), ("flags", "u1"), ("detail", "<u2")])

_CURSOR_DTYPE = np.dtype(
    [
        ("walk", "<u8", 9),
        ("linear_to_page", "<u8"),
        ("socket_file_operations", "<u8"),
        ("net_operations", "<u8"),
        ("item", "<u4"),
        ("items", "<u4"),
        ("position", "<u4"),
        ("done", "<u4"),
        ("state", "<u4", 8),
    ]
)

_WORK = 16_384
_RECORDS = 512
# Steps of one run. The verifier follows each of them, and how many fit into its limit of a million instructions depends
# on the compiler's code: with LLVM 14, sixteen steps take 144,000 of them (Linux 6.18).
_SOURCE = Path(__file__).with_suffix(".bpf.c")
_STEPS = (16, 8, 4, 2, 1)
_STEP_RECORDS = 64  # maximum of one step: a packet with all its fragments (MAX_SKB_FRAGS is at most 45)
_RUNS_BETWEEN_CLOCKS = 1_024  # maximum, even if nothing is found: empty buckets, pages already recorded
_GATHER = 65_536  # records passed to the caller at once: 1 MiB
# Of one item, so that a walk that leaves its item ends. A socket takes packets of 2 GiB at most, each charged 512 bytes
# or more: 4.2 million, of three steps.
_MAX_STEPS = 1 << 24

_MAPS = {"work": ITEM_DTYPE, "outputs": np.dtype((RECORD_DTYPE, _RECORDS)), "cursors": _CURSOR_DTYPE}

_NUMBERS_IN_C = {
    **enum_defines("KIND", Kind),
    **enum_defines("RECORD", RecordType),
    **enum_defines("TABLE", Table),
    **enum_defines("STATUS", Status),
    **enum_defines("SOCKET", Found),
    "ITEM_UNIX": ITEM_UNIX,
    "ITEM_EMBRYOS": ITEM_EMBRYOS,
    "ITEM_PAGES": ITEM_PAGES,
    "RECORD_IS_MEMBER": IS_MEMBER,
    "RECORD_UNREADABLE": UNREADABLE,
    "RECORD_IS_USER": IS_USER,
    "RECORD_IS_DEVICE": IS_DEVICE,
    "RECORD_IS_SLAB": IS_SLAB,
    "HEAD_UNIT_BYTES": HEAD_UNIT_BYTES,
    "IDENTITIES": IDENTITIES,
    "STEP_RECORDS": _STEP_RECORDS,
    "MAX_STEPS": _MAX_STEPS,
    "WORK": _WORK,
    "RECORDS": _RECORDS,
}

_FIELDS: tuple[Field, ...] = (
    ("QUEUE_LENGTH", "sk_buff_head", "qlen"),
    ("PACKET_NEXT", "sk_buff", "next"),
    ("PACKET_PREVIOUS", "sk_buff", "prev"),
    ("PACKET_SOCKET", "sk_buff", "sk"),
    ("PACKET_CONTROL", "sk_buff", "cb"),
    ("PACKET_LENGTH", "sk_buff", "len"),
    ("PACKET_TRUESIZE", "sk_buff", "truesize"),
    ("PACKET_HEAD", "sk_buff", "head"),
    ("PACKET_END", "sk_buff", "end"),
    ("SHARED_FRAGMENT_COUNT", "skb_shared_info", "nr_frags"),
    ("SHARED_FRAGMENT_LIST", "skb_shared_info", "frag_list"),
    ("SHARED_FRAGMENTS", "skb_shared_info", "frags"),
    ("UNIX_FILES", "unix_skb_parms", "fp"),
    ("SCM_COUNT", "scm_fp_list", "count"),
    ("SCM_FILES", "scm_fp_list", "fp"),
    ("FILE_OPERATIONS", "file", "f_op"),
    ("FILE_PRIVATE", "file", "private_data"),
    ("SOCKET_SK", "socket", "sk"),
    ("REQUEST_SOCKET", "request_sock", "sk"),
    ("REQUEST_NEXT", "request_sock", "dl_next"),
    ("TREE_PARENT", "rb_node", "__rb_parent_color"),
    ("TREE_LEFT", "rb_node", "rb_left"),
    ("TREE_RIGHT", "rb_node", "rb_right"),
    ("PIPE_HEAD", "pipe_inode_info", "head"),
    ("PIPE_TAIL", "pipe_inode_info", "tail"),
    ("PIPE_SLOTS", "pipe_inode_info", "ring_size"),
    ("PIPE_BUFFERS", "pipe_inode_info", "bufs"),
    ("PIPE_KEPT", "pipe_inode_info", "tmp_page"),
    ("PIPE_BUFFER_PAGE", "pipe_buffer", "page"),
    ("PIPE_BUFFER_LENGTH", "pipe_buffer", "len"),
    ("NET_LIST", "net", "list"),
    ("NET_OPERATIONS", "net", "ns.ops"),
)
_TABLES: tuple[Field, ...] = (
    ("NET_UNIX_BUCKETS", "net", "unx.table.buckets"),  # 6.0, 79b05beaa5c3
    ("NET_TCP_HASH", "net", "ipv4.tcp_death_row.hashinfo"),
    ("NET_UDP_TABLE", "net", "ipv4.udp_table"),  # 6.2, 9804985bf27f
    ("NET_PACKET_LIST", "net", "packet.sklist"),
    ("TCP_HASH_BUCKETS", "inet_hashinfo", "ehash"),
    ("TCP_HASH_MASK", "inet_hashinfo", "ehash_mask"),
    ("UDP_TABLE_SLOTS", "udp_table", "hash"),
    ("UDP_TABLE_MASK", "udp_table", "mask"),
    ("SOCK_NODE", "sock", "__sk_common.skc_node"),
)
_UNIX_BUCKETS = 512  # include/net/af_unix.h, UNIX_HASH_SIZE: 256 for bound and 256 for unbound sockets


def _kept_pages(btf: Btf) -> int:
    """The number of pages that a pipe keeps: one, since 6.15 (46af8e2406c2) two."""
    kept_bytes = btf.offset_bytes("pipe_inode_info", "fasync_readers") - btf.offset_bytes("pipe_inode_info", "tmp_page")
    return kept_bytes // 8


def queue_defines(btf: Btf) -> dict[str, int]:
    """The defines of walker.bpf.c for the running kernel. Raises BtfError naming what the kernel lacks."""
    fragment = (
        "skb_frag" if btf.has_struct("skb_frag") else "bio_vec"
    )  # 6.9, 21d2e6737c97: before, a frag was a bio_vec
    shared_bytes, fragment_bytes = btf.size_bytes("skb_shared_info"), btf.size_bytes(fragment)
    head_frag = btf.bit_offset("sk_buff", "head_frag")
    return (
        _NUMBERS_IN_C
        | block_layout(btf)
        | offsets(btf, _FIELDS)
        | optional_offsets(btf, "HAS_TABLES", _TABLES)
        | {
            "PACKET_SIZE": btf.size_bytes("sk_buff"),
            "SHARED_SIZE": shared_bytes,
            "FRAGMENT_SIZE": fragment_bytes,
            "MAX_FRAGMENTS": (shared_bytes - btf.offset_bytes("skb_shared_info", "frags")) // fragment_bytes,
            "PACKET_HEAD_FRAG_BYTE": head_frag // 8,
            "PACKET_HEAD_FRAG_MASK": 1 << head_frag % 8,
            "UNIX_BUCKETS": _UNIX_BUCKETS,
            "PIPE_BUFFER_SIZE": btf.size_bytes("pipe_buffer"),
            "PIPE_KEPT_PAGES": _kept_pages(btf),
            "SCM_MAX_FILES": 253,  # include/net/scm.h, SCM_MAX_FD
            "PAGE_SHIFT": mmap.PAGESIZE.bit_length() - 1,
        }
    )


def _load_walk(defines: dict[str, int]) -> tuple[BpfObject, RunnableProgram]:
    """The walking program with as many steps per run as the kernel's verifier accepts."""
    for steps in _STEPS:
        bpf_object = BpfObject(_SOURCE, {**defines, "STEPS": steps}, _MAPS)
        try:
            return bpf_object, bpf_object.runnable("walk")
        except BpfError as error:
            bpf_object.close()
            if error.errno != errno.E2BIG or steps == _STEPS[-1]:
                raise
    raise AssertionError("the last number of steps returned or raised")


class QueueWalker(Resource):
    """The walking program, loaded once; a context manager. Raises BpfError if the kernel refuses it."""

    def __init__(self, btf: Btf) -> None:
        defines = queue_defines(btf)
        self._net_list = defines["NET_LIST"]
        self._has_tables, self._socket_node = "HAS_TABLES" in defines, defines.get("SOCK_NODE", 0)
        self._stride = dict.fromkeys(Table, 8) | {Table.UDP: btf.size_bytes("udp_hslot")}
        with self._opening() as parts:
            self._object, self._walk = _load_walk(defines)
            parts.enter_context(self._object)
            self._work = self._object.view("work", ITEM_DTYPE, _WORK)
            self._records = self._object.view("outputs", RECORD_DTYPE, _RECORDS)
            self._cursor = self._object.view("cursors", _CURSOR_DTYPE, 1)
            for view in ("_work", "_records", "_cursor"):  # the mapping cannot be closed while a numpy view uses it
                parts.callback(delattr, self, view)
            self._gathered = np.empty(_GATHER, RECORD_DTYPE)

    def net_items(self, net: int) -> npt.NDArray[np.void]:
        """The item that finds all network namespaces from that at `net`; empty if this kernel's layout is unknown."""
        items = np.zeros(1 if self._has_tables else 0, ITEM_DTYPE)
        items["head"], items["kind"] = net + self._net_list, Kind.NETS
        return items

    def table_items(self, tables: Iterable[tuple[int, int]]) -> npt.NDArray[np.void]:
        """Items for the hash tables that walking `net_items` found, each once: (which, value) in order of records."""
        pairs = list(tables)
        found = {address: (which, count) for (which, address), (_, count) in zip(pairs[::2], pairs[1::2], strict=True)}
        items = np.zeros(len(found), ITEM_DTYPE)
        for item, (address, (which, count)) in zip(items, found.items(), strict=True):
            item["head"], item["kind"], item["count"] = address, Kind.TABLE, count
            item["stride"], item["node"] = self._stride[Table(which)], self._socket_node
        return items

    def walk(
        self,
        items: npt.NDArray[np.void],
        *,
        late: Callable[[], bool],
        linear_to_page: int = 0,
        socket_file_operations: int = 0,
        net_operations: int = 0,
    ) -> Iterator[npt.NDArray[np.void]]:
        """Walk every item (ITEM_DTYPE) and yield its records (RECORD_DTYPE), in the order of the items, in pieces.

        A piece is only valid until the next; its records refer to items by index. Each item ends in one END record;
        once `late` returns true, the remaining ones have none. A fact that is 0 disables the features that
        need it: heads with pages of their own, files in flight, the list of namespaces.
        """
        for start in range(0, len(items), _WORK):
            batch = items[start : start + _WORK]
            self._work[: len(batch)] = batch
            cursor = np.zeros(1, _CURSOR_DTYPE)
            cursor["items"] = len(batch)
            cursor["linear_to_page"] = linear_to_page
            cursor["socket_file_operations"] = socket_file_operations
            cursor["net_operations"] = net_operations
            self._cursor[:] = cursor
            for piece in self._pieces(late):
                piece["item"] += start
                yield piece
            if not self._cursor["done"][0]:
                return

    def _pieces(self, late: Callable[[], bool]) -> Iterator[npt.NDArray[np.void]]:
        """The records of the batch at the cursor, until it is done or `late` returns true."""
        position, done = self._cursor["position"], self._cursor["done"]
        gathered = 0
        for run in itertools.count(1):
            self._walk.run()
            if not done[0] and position[0] <= _RECORDS - _STEP_RECORDS and run % _RUNS_BETWEEN_CLOCKS:
                continue
            count = int(position[0])
            self._gathered[gathered : gathered + count] = self._records[:count]
            gathered += count
            position[0] = 0
            is_late = late()
            if done[0] or is_late or gathered > _GATHER - _RECORDS:
                yield self._gathered[:gathered]
                gathered = 0
            if done[0] or is_late:
                return
