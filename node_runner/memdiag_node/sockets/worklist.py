"""Choose the queues to walk, and their order (pure)."""

import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets import source
from memdiag_node.sockets.scan import ACCEPT, BACKLOG, ERROR, OUT_OF_ORDER, READER, RECEIVE, RETRANSMIT, WRITE
from memdiag_node.walker.walker import ITEM_DTYPE, ITEM_EMBRYOS, ITEM_UNIX, Kind

_MAX_GROWTH_PACKETS = 4_096
_MIN_TRUESIZE_BYTES = 512  # the minimum charge of a packet: its struct, its head and the skb_shared_info in it


def is_busy(rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Which sockets have something queued, waiting to be accepted, or mapped as a ring."""
    busy = np.zeros(len(rows), bool)
    for column in (
        *("receive_packets", "reader_packets", "write_packets", "error_packets", "vsock_packets"),
        *("present", "unaccepted", "rx_ring", "tx_ring"),
    ):
        busy |= rows[column] != 0
    return busy


def likely_bytes(rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """An estimate of what each socket holds. Receiving UNIX sockets are charged nothing: a page for each packet."""
    charged: npt.NDArray[np.int64] = (
        rows["receive_charge_bytes"].astype(np.int64) + rows["write_queued_bytes"] + rows["backlog_bytes"]
    )
    charged += np.where(rows["family"] == source.AF_UNIX, rows["receive_packets"], 0).astype(np.int64) * mmap.PAGESIZE
    return charged


def worklist(
    rows: npt.NDArray[np.void], offset: Mapping[str, int]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint8], npt.NDArray[np.void]]:
    """The worklist for these sockets: the socket's number, the queue's name, and the item, one row each.

    `offset`: the offset of each queue in a sock, by the names of sockets.source.socket_defines.
    """
    is_unix = rows["family"] == source.AF_UNIX
    is_pending = is_unix & (rows["state"] == source.TCP_LISTEN)
    received, present = rows["receive_packets"], rows["present"]
    is_waiting, waiting = present & source.PRESENT_BACKLOG != 0, 1 + rows["backlog_bytes"] // _MIN_TRUESIZE_BYTES
    # A reader moves all received packets into its own queue at once, so both queues are walked, its own first.
    is_inet = (rows["family"] == source.AF_INET) | (rows["family"] == source.AF_INET6)
    is_udp = is_inet & (rows["type"] == source.SOCK_DGRAM) & np.isin(rows["protocol"], source.UDP_PROTOCOLS)
    is_mptcp = is_inet & (rows["protocol"] == source.IPPROTO_MPTCP)
    consumed = np.select(
        [is_unix, is_mptcp, rows["family"] == source.AF_VSOCK],
        [offset["UNIX_CONSUMED"], offset.get("MPTCP_CONSUMED", 0), offset.get("VSOCK_CONSUMED", 0)],
    )
    unread = np.where(is_udp, received + rows["reader_packets"], 0)
    plan: tuple[tuple[int, npt.NDArray[Any], Kind, str, int], ...] = (
        (READER, unread, Kind.PACKET_LIST, "UDP_READER_QUEUE", 0),
        (RECEIVE, np.where(is_udp, unread, np.where(is_unix, 0, received)), Kind.PACKET_LIST, "SOCK_RECEIVE_QUEUE", 0),
        (RECEIVE, np.where(is_unix & ~is_pending, received, 0), Kind.PACKET_LIST, "SOCK_RECEIVE_QUEUE", ITEM_UNIX),
        (ACCEPT, np.where(is_pending, received, 0), Kind.PACKET_LIST, "SOCK_RECEIVE_QUEUE", ITEM_EMBRYOS),
        (RECEIVE, rows["vsock_packets"], Kind.PACKET_LIST, "", 0),
        (WRITE, rows["write_packets"], Kind.PACKET_LIST, "SOCK_WRITE_QUEUE", 0),
        (ERROR, rows["error_packets"], Kind.PACKET_LIST, "SOCK_ERROR_QUEUE", 0),
        (OUT_OF_ORDER, present & source.PRESENT_OUT_OF_ORDER, Kind.PACKET_TREE, "TCP_OUT_OF_ORDER", 0),
        (RETRANSMIT, present & source.PRESENT_RETRANSMIT, Kind.PACKET_TREE, "SOCK_RETRANSMIT", 0),
        (BACKLOG, np.where(is_waiting, waiting, 0), Kind.PACKET_CHAIN, "SOCK_BACKLOG_HEAD", 0),
        (ACCEPT, present & source.PRESENT_ACCEPT, Kind.ACCEPT, "LISTENER_ACCEPT_HEAD", 0),
    )
    sockets, names, items = [], [], []
    for name, length, kind, field_name, flags in plan:
        chosen = np.flatnonzero(length)
        part = np.zeros(len(chosen), ITEM_DTYPE)
        part["head"] = (
            rows["socket"][chosen] + np.uint64(offset[field_name]) if field_name else rows["vsock_queue"][chosen]
        )
        part["kind"], part["flags"] = kind, flags
        if name == RECEIVE:
            part["consumed"] = consumed[chosen]
        # A walk that leaves its chain in a race may never end, so it is stopped far beyond the chain's length.
        part["count"] = 2 * length[chosen].astype("<u4") + _MAX_GROWTH_PACKETS
        sockets.append(chosen)
        names.append(np.full(len(chosen), name, "u1"))
        items.append(part)
    socket, name_column, item = np.concatenate(sockets), np.concatenate(names), np.concatenate(items)
    order = np.argsort(socket, kind="stable")
    return socket[order], name_column[order], item[order]
