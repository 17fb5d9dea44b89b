"""The queues that are walked, and their order."""

import socket

import numpy as np

from memdiag_node.sockets.scan import READER, RECEIVE
from memdiag_node.sockets.source import DESCRIPTION_DTYPE
from memdiag_node.sockets.worklist import worklist


def test_both_queues_of_a_udp_socket_are_walked_its_readers_first() -> None:
    rows = np.zeros(4, DESCRIPTION_DTYPE)
    rows["socket"] = 4096, 8192, 12288, 16384
    rows["family"], rows["protocol"] = socket.AF_INET, socket.IPPROTO_UDP
    rows["type"] = (socket.SOCK_DGRAM,) * 3 + (socket.SOCK_RAW,)
    rows["receive_packets"], rows["reader_packets"] = (3, 0, 0, 3), (0, 2, 0, 0)
    offset = {"SOCK_RECEIVE_QUEUE": 1, "UDP_READER_QUEUE": 2} | dict.fromkeys(
        ("SOCK_WRITE_QUEUE", "SOCK_ERROR_QUEUE", "TCP_OUT_OF_ORDER", "SOCK_RETRANSMIT", "SOCK_BACKLOG_HEAD"), 0
    )
    numbers, names, items = worklist(rows, offset | {"LISTENER_ACCEPT_HEAD": 0, "UNIX_CONSUMED": 28})
    assert list(zip(numbers.tolist(), names.tolist(), items["head"].tolist(), strict=True)) == [
        (0, READER, 4098),
        (0, RECEIVE, 4097),
        (1, READER, 8194),
        (1, RECEIVE, 8193),
        (3, RECEIVE, 16385),
    ]
