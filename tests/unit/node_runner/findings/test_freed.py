"""What comes back: every block once, and none that something else keeps."""

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.findings.freed import exclusive_bytes
from memdiag_node.holding import PACKET_STRUCT_BYTES, Holding
from support.holdings import BLOCK_BYTES, blocks_at
from support.measurements import PAGE_BYTES


def holding(
    *pages: int, head_bytes: int = 0, packets: int = 0, beyond_bytes: int = 0, kind: HolderKind = HolderKind.SOCKET
) -> Holding:
    pinned_bytes = len(set(pages)) * BLOCK_BYTES + beyond_bytes
    holder = Holder(kind=kind, pinned_bytes=pinned_bytes, head_bytes=head_bytes, unread_packets=packets)
    return Holding(holder, blocks_at(*pages))


@pytest.mark.parametrize(
    ("holdings", "group", "freed_bytes"),
    [
        ([holding(1, 2), holding(3)], [0], 2 * BLOCK_BYTES),
        ([holding(1, 2), holding(2, 3)], [0], BLOCK_BYTES),
        ([holding(1, 2), holding(2, 3)], [1], BLOCK_BYTES),
        ([holding(1, 2), holding(2, 3)], [0, 1], 3 * BLOCK_BYTES),
        ([holding(1, 2), holding(2, 3), holding(3)], [0, 1], 2 * BLOCK_BYTES),
        ([holding(5, 1), holding(9, 5, 1)], [0], 0),
        ([holding(1, head_bytes=700, packets=3), holding(2)], [0], BLOCK_BYTES + 700 + 3 * PACKET_STRUCT_BYTES),
        ([holding(1, packets=3, kind=HolderKind.TUN_QUEUE)], [0], BLOCK_BYTES + 3 * PACKET_STRUCT_BYTES),
        ([holding(1, packets=256, kind=HolderKind.PIPE)], [0], BLOCK_BYTES),  # they are buffers
        ([holding(), holding(1)], [0], 0),
        ([holding(1, beyond_bytes=9_000)], [0], BLOCK_BYTES + 9_000),
        ([holding(1)], [], 0),
    ],
)
def test_what_only_the_group_keeps(holdings: list[Holding], group: list[int], freed_bytes: int) -> None:
    assert exclusive_bytes(group, holdings, page_bytes=PAGE_BYTES) == freed_bytes
