"""Adding up the walker's records, with hand-made records."""

import numpy as np
import numpy.typing as npt

from memdiag_node.walker.tally import BLOCK_DTYPE, Tally, unique_blocks
from memdiag_node.walker.walker import IS_DEVICE, IS_MEMBER, IS_USER, RECORD_DTYPE, UNREADABLE, RecordType, Status

PAGE = 4096


Record = tuple[int, int, int, int, int]


def records(*rows: Record) -> npt.NDArray[np.void]:
    """Rows of value, item, type, flags, detail."""
    return np.array(list(rows), RECORD_DTYPE)


def packet(item: int, length: int, truesize: int, *, flags: int = 0, head_bytes: int = 0) -> Record:
    return (length << 32 | truesize, item, RecordType.PACKET, flags, head_bytes // 16)


def fragment(item: int, page: int, order: int = 0, flags: int = 0) -> Record:
    return (page, item, RecordType.FRAGMENT, flags, order)


def end(item: int, packets: int, status: Status = Status.WHOLE) -> Record:
    return (packets << 32 | packets, item, RecordType.END, 0, status)


def test_members_of_a_frag_list_count_with_their_head_only() -> None:
    tally = Tally(1, max_blocks=10)
    tally.add(
        records(
            packet(0, 24_000, 27_000, head_bytes=640),
            packet(0, 8_000, 9_000, flags=IS_MEMBER, head_bytes=320),
            end(0, 1),
        )
    )
    row = tally.table[0]
    assert (row["packets"], row["payload_bytes"], row["charge_bytes"], row["head_bytes"]) == (1, 24_000, 27_000, 960)


def test_a_block_counts_once_for_each_queue_however_the_records_are_cut() -> None:
    rows = [
        packet(0, 10, 800),
        fragment(0, 64, 3),
        packet(0, 10, 800),
        fragment(0, 128, 3),
        fragment(0, 64, 3),
        end(0, 2),
    ]
    rows += [packet(1, 10, 800), fragment(1, 64, 3), end(1, 1)]
    for cut in range(len(rows)):
        tally = Tally(2, max_blocks=100)
        tally.add(records(*rows[:cut]))
        tally.add(records(*rows[cut:]))
        assert [(block["owner"], block["page"]) for block in tally.blocks()] == [(0, 64), (0, 128), (1, 64)]
        assert tally.table["packets"].tolist() == [2, 1]
        assert tally.table["status"].tolist() == [Status.WHOLE, Status.WHOLE]


def test_blocks_beyond_the_bound_are_counted_and_not_kept() -> None:
    tally = Tally(1, max_blocks=2)
    tally.add(records(packet(0, 1, 1), *(fragment(0, 64 * number) for number in range(1, 6)), end(0, 1)))
    assert len(tally.blocks()) == 2
    assert tally.blocks_left_out == 3
    assert tally.table["unreadable"][0] > 0


def test_user_pages_device_memory_and_unreadable_ones_are_counted_separately() -> None:
    tally = Tally(1, max_blocks=10)
    tally.add(
        records(
            packet(0, 1, 1, flags=UNREADABLE),
            fragment(0, 64, flags=IS_USER),
            fragment(0, 0, flags=IS_DEVICE),
            fragment(0, 0, flags=UNREADABLE),
            end(0, 1),
        )
    )
    assert tally.blocks()["user"].tolist() == [True]
    assert (tally.table["device"][0], tally.table["unreadable"][0]) == (1, 2)


def test_unique_blocks_keeps_each_page_of_each_owner() -> None:
    blocks = np.array(
        [(1, 64, 0, False, False), (0, 64, 0, False, False), (1, 64, 0, False, False), (0, 0, 0, True, False)],
        BLOCK_DTYPE,
    )
    assert unique_blocks(blocks)[["owner", "page"]].tolist() == [(0, 0), (0, 64), (1, 64)]
