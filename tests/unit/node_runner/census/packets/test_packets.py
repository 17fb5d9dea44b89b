"""What is the same in two readings of packets."""

import numpy as np

from memdiag_node.census.packets.packets import UnlinkedPackets, unchanged

FIRST, SECOND, NEW = 7, 8, 9


def test_a_packet_in_no_queue_is_unchanged_if_it_was_there_and_a_socket_if_it_has_all_that_it_had() -> None:
    earlier = UnlinkedPackets(np.array([1, 2, 3, 4, 5], "<u8"), np.array([0, FIRST, FIRST, SECOND, SECOND], "<u8"), 0)
    now = [(1, 0), (6, 0), (2, FIRST), (3, FIRST), (10, FIRST), (5, SECOND), (11, NEW)]  # SECOND was read from
    hashes, sockets = (np.array(column, "<u8") for column in zip(*now, strict=True))
    assert unchanged(hashes, sockets, earlier).tolist() == [True, False, True, True, True, False, False]
