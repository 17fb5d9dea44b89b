"""Slow readers: the rule, with a row for each kind of evidence."""

from collections.abc import Sequence

import pytest

from memdiag_api.evidence import Holder, HolderKind, Owner, Pace, SummedSockets
from memdiag_api.findings import LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.slow_reader import slow_readers
from memdiag_node.holding import PACKET_STRUCT_BYTES, Holding
from support.holdings import BLOCK_BYTES, MIB, held, owner, situation_of, socket_holder


def reader(
    *,
    of: Owner | None = None,
    pinned_bytes: int = 200 * MIB,
    unread_bytes: int = 460_800,
    rate: float | None = 64,
    arrival: float | None = 0,
    throughout_bytes: int | None = None,
) -> Holder:
    holder = socket_holder(
        of=of,
        pinned_bytes=pinned_bytes,
        payload_bytes=unread_bytes,
        read_bytes_per_second=rate,
        arrived_bytes_per_second=arrival,
    )
    kept = pinned_bytes if throughout_bytes is None else throughout_bytes
    return holder.model_copy(update={"kept_throughout_bytes": kept})


def summed(reading: Pace, *, of: Owner, sockets: int = 30, pinned_bytes: int = 60 * MIB) -> Holder:
    return Holder(
        kind=HolderKind.SOCKET,
        owners=[of],
        owners_total=1,
        summed=sockets,
        unread_bytes=MIB,
        pinned_bytes=pinned_bytes,
        kept_throughout_bytes=pinned_bytes,
        summed_sockets=SummedSockets(
            reading=reading, sending=Pace.STEADY, read_bytes_per_second=100, arrived_bytes_per_second=0
        ),
    )


def found(*holders: Holder) -> list[Draft]:
    holdings = _apart(holders)
    return list(slow_readers(situation_of(*holdings), range(len(holdings))))


def _apart(holders: Sequence[Holder]) -> list[Holding]:
    """With blocks that no two of them share."""
    return [held(one, first_page=number << 20) for number, one in enumerate(holders)]


def test_a_slow_reader_is_named_with_its_rate_and_the_time_to_drain() -> None:
    (draft,) = found(reader(of=owner()))
    assert draft.sentence == (
        "python3[77] fd 5 reads at 64 B/s, with 450 KiB unread that pin 200 MiB: the backlog would take 2 h to drain."
    )
    assert (draft.leak, draft.size_bytes) == (LeakAnswer.UNKNOWN, 200 * MIB + 10 * PACKET_STRUCT_BYTES)
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid, draft.owner.fds) == (OwnerKind.PROCESS, 77, [5])
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == 200 * MIB + 10 * PACKET_STRUCT_BYTES


def test_a_backlog_that_grows_while_it_is_read_never_drains() -> None:
    (draft,) = found(reader(of=owner(), arrival=100))
    assert draft.sentence.endswith("so the backlog never drains.")


@pytest.mark.parametrize(
    "holder",
    [
        reader(of=owner(), rate=10_000_000, arrival=10_000_000),  # back-pressure: as fast as it arrives, and at once
        reader(of=owner(), rate=460_800 / 590),  # would take a little less than the threshold
        reader(of=owner(), rate=None),  # the protocol does not count reads
        reader(of=owner(), rate=0),  # nothing is read: another finding
        reader(of=owner(), pinned_bytes=16 * MIB),  # less than the suspect size, 0.1 % of 16 GiB
        reader(of=owner(), throughout_bytes=MIB),  # a backlog that has just arrived
        summed(Pace.STEADY, of=owner()),
        summed(Pace.STUCK, of=owner()),
    ],
)
def test_what_is_no_slow_reader(holder: Holder) -> None:
    assert found(holder) == []


def test_a_sum_of_small_sockets_is_a_slow_reader_too() -> None:
    (draft,) = found(summed(Pace.SLOW, of=owner()))
    assert draft.sentence.startswith("python3[77] reads 30 sockets at 100 B/s")


@pytest.mark.parametrize(
    ("pods", "kind", "start"),
    [
        (["a"] * 40, OwnerKind.CONTAINER, "container c-a reads 40 sockets"),
        ([f"p{number}" for number in range(40)], OwnerKind.NODE, "40 processes of the node read 40 sockets"),
    ],
)
def test_many_small_ones_are_found_by_what_they_have_in_common(pods: list[str], kind: OwnerKind, start: str) -> None:
    holders = [
        reader(of=owner(number + 1, container=f"c-{pod}", pod=pod), pinned_bytes=5 * BLOCK_BYTES)
        for number, pod in enumerate(pods)
    ]
    (draft,) = found(*holders)
    assert draft.owner is not None
    assert draft.owner.kind is kind
    assert draft.owner.processes == 40
    assert draft.sentence.startswith(start)
    assert sorted(draft.holders) == list(range(40))


def test_one_process_with_most_of_it_is_not_hidden_by_its_container() -> None:
    holders = [reader(of=owner(number, container="c", pod="p"), pinned_bytes=20 * MIB) for number in (2, 3)]
    drafts = found(reader(of=owner(1, container="c", pod="p")), *holders)
    assert [draft.owner.kind for draft in drafts if draft.owner] == [
        OwnerKind.PROCESS,
        OwnerKind.PROCESS,
        OwnerKind.PROCESS,
    ]
    packets_bytes = 10 * PACKET_STRUCT_BYTES
    assert [draft.size_bytes - packets_bytes for draft in drafts] == [200 * MIB, 20 * MIB, 20 * MIB]


def test_an_orphaned_connection_is_closed_at_its_peer() -> None:
    (draft,) = found(reader(of=None))
    assert draft.owner is not None
    assert draft.owner.kind is OwnerKind.SOCKET
    assert draft.freed_by is not None
    assert "peer" in draft.freed_by.action


def test_blocks_in_other_holders_do_not_come_back() -> None:
    one, other = reader(of=owner()), socket_holder(of=owner(9), pinned_bytes=50 * MIB)
    holdings = [held(one, first_page=0), held(other, first_page=100)]
    (draft,) = slow_readers(situation_of(*holdings), [0, 1])
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == 150 * MIB + 10 * 256
