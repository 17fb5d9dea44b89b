"""Unsent data: the rule, with a row for each kind of evidence."""

import pytest

from memdiag_api.evidence import Holder, HolderKind, Owner, Pace, Peer, SummedSockets
from memdiag_api.findings import LeakAnswer
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.unsent_data import unsent_data
from support.holdings import MIB, held, owner, situation_of, socket_holder


def sender(
    *,
    of: Owner | None = None,
    pinned_bytes: int = 100 * MIB,
    payload_bytes: int = 90 * MIB,
    stalled: float | None = 60,
    rate: float | None = 0,
    closed: bool = True,
    remote: str = "10.0.3.7:80",
    local: str = "10.0.0.1:4000",
) -> Holder:
    return socket_holder(
        of=of or owner(7),
        pinned_bytes=pinned_bytes,
        queue="write",
        payload_bytes=payload_bytes,
        send_stalled_seconds=stalled,
        acked_bytes_per_second=rate,
        peer_window_closed=closed,
        remote_address=remote,
        local_address=local,
    )


def summed(sending: Pace, *, kept_bytes: int = 900 * MIB, stalled: float | None = 60) -> Holder:
    return Holder(
        kind=HolderKind.SOCKET,
        owners=[owner(7)],
        owners_total=1,
        summed=2_099,
        pinned_bytes=kept_bytes,
        summed_sockets=SummedSockets(
            reading=Pace.STEADY,
            sending=sending,
            send_stalled_seconds=stalled,
            acked_bytes_per_second=0,
            unsent_bytes=800 * MIB,
            unsent_kept_bytes=kept_bytes,
            peers=[Peer(address="10.0.3.8:80", connections=2_000, size_bytes=kept_bytes)],
        ),
    )


def found(*holders: Holder) -> list[Draft]:
    holdings = [held(one, first_page=number << 20) for number, one in enumerate(holders)]
    return list(unsent_data(situation_of(*holdings), range(len(holdings))))


def test_the_peers_with_most_are_named_and_their_connections_counted() -> None:
    (draft,) = found(sender(), summed(Pace.STUCK))
    assert draft.sentence == (
        "0.98 GiB unsent in 2,100 connections of python3[7]; the peers do not read: 10.0.3.8:80 (900 MiB), "
        "10.0.3.7:80 (100 MiB)."
    )
    assert draft.leak is LeakAnswer.UNKNOWN
    assert draft.owner is not None
    assert draft.owner.pid == 7
    assert any("acknowledged nothing for at least 60 s" in reason for reason in draft.reasons)
    assert any("closed their receive windows" in reason for reason in draft.reasons)


def test_clients_are_named_without_their_ports() -> None:
    (draft,) = found(*(sender(remote=f"10.9.0.{number % 2}:{5_000 + number}") for number in range(10)))
    assert draft.sentence.endswith("the peers do not read: 10.9.0.0 (500 MiB), 10.9.0.1 (500 MiB).")


@pytest.mark.parametrize(
    "holder",
    [
        sender(stalled=None, rate=100e6),  # a healthy bulk transfer: 90 MiB are gone in a second
        sender(stalled=None, rate=90 * MIB / 590),
        sender(stalled=None, rate=None),  # nothing waited at the start
        sender(stalled=0.5),
        sender(pinned_bytes=16 * MIB),
        socket_holder(of=owner(), pinned_bytes=100 * MIB, payload_bytes=MIB),
        summed(Pace.STEADY, stalled=None),
        Holder(kind=HolderKind.PIPE, pinned_bytes=100 * MIB),
    ],
)
def test_what_is_no_unsent_data(holder: Holder) -> None:
    assert found(holder) == []


def test_peers_that_read_too_slowly_are_said_to() -> None:
    (draft,) = found(sender(stalled=None, rate=500))
    assert "the peers read too slowly: 10.0.3.7:80" in draft.sentence
    assert any("500 B/s" in reason for reason in draft.reasons)


def test_an_open_window_means_that_the_peer_may_not_be_reachable() -> None:
    (draft,) = found(sender(closed=False))
    assert any("not be reachable" in reason for reason in draft.reasons)


def test_the_process_that_does_not_read_is_named_if_it_is_on_this_node() -> None:
    reader = socket_holder(
        of=owner(55, fd=9),
        pinned_bytes=4 * MIB,
        payload_bytes=3 * MIB,
        local_address="10.0.3.7:80",
        remote_address="10.0.0.1:4000",
    )
    (draft,) = found(sender(), reader)
    assert any("the cause: python3[55] fd 9 has 3.00 MiB unread" in reason for reason in draft.reasons)
    assert list(draft.holders) == [0]


def test_blocks_that_the_reader_has_too_do_not_come_back() -> None:
    holdings = [held(sender(), first_page=0), held(socket_holder(of=owner(9), pinned_bytes=30 * MIB), first_page=90)]
    (draft,) = unsent_data(situation_of(*holdings), [0, 1])
    assert draft.freed_by is not None
    assert draft.freed_by.size_bytes == 90 * MIB + 10 * 256


def test_the_other_ends_of_many_connections_are_named_once() -> None:
    holders = []
    for number in range(4):
        near, far = f"10.0.0.1:{4_000 + number}", "10.0.3.7:80"
        holders.append(sender(local=near, remote=far))
        holders.append(
            socket_holder(of=owner(55), pinned_bytes=MIB, payload_bytes=MIB, local_address=far, remote_address=near)
        )
    (draft,) = found(*holders)
    about = [reason for reason in draft.reasons if "the cause" in reason]
    assert about == ["4 of the other ends are on this node, and the cause: python3[55] has 4.00 MiB unread there"]


@pytest.mark.parametrize(
    ("reason", "total", "text"),
    [("orphaned", 0, "in a connection that no process holds (orphaned);"), ("", 1, "of a process that has ended;")],
)
def test_connections_without_a_process(reason: str, total: int, text: str) -> None:
    orphan = sender().model_copy(update={"owners": [], "owners_total": total, "unowned_reason": reason})
    (draft,) = found(orphan)
    assert text in draft.sentence
