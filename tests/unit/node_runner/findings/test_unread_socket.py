"""Unread sockets: when they are a leak, by table; the groups are in test_verdict.py."""

from typing import Any

import pytest

from memdiag_api.findings import LeakAnswer
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.unread_socket import unread_sockets
from support.holdings import GIB, MIB, held, owner, situation_of, socket_holder


def found(*, sockets: int = 1, pinned_bytes: int = 200 * MIB, **changes: Any) -> list[Draft]:
    """The findings about sockets of one process, all alike."""
    usual = {"stuck_seconds": 60.0, "unread_packets": 1000, "unread_bytes": 64_000}
    each = socket_holder(of=owner(), pinned_bytes=pinned_bytes, payload_bytes=64_000).model_copy(update=usual | changes)
    holdings = [held(each, first_page=number * GIB) for number in range(sockets)]
    return list(unread_sockets(situation_of(*holdings)))


@pytest.mark.parametrize(
    ("changes", "leak"),
    [
        pytest.param({}, LeakAnswer.YES, id="for a minute"),
        pytest.param({"stuck_seconds": 9.0}, LeakAnswer.UNKNOWN, id="for some seconds: back-pressure"),
        pytest.param({"stuck_seconds": 9.0, "unread_age_seconds": 3600.0}, LeakAnswer.YES, id="an hour old"),
        pytest.param({"stuck_seconds": 9.0, "kept_throughout_bytes": 50 * MIB}, LeakAnswer.YES, id="it grew"),
        pytest.param(
            {"stuck_seconds": 9.0, "kept_throughout_bytes": 190 * MIB}, LeakAnswer.UNKNOWN, id="it grew a little"
        ),
        pytest.param(
            {"unread_packets": 1, "unread_bytes": 31, "pinned_bytes": MIB, "sockets": 512},
            LeakAnswer.UNKNOWN,
            id="the ends of many TLS sessions",
        ),
        pytest.param(
            {"unread_packets": 1, "unread_bytes": 60_000, "pinned_bytes": MIB, "sockets": 512},
            LeakAnswer.YES,
            id="one large packet each",
        ),
        pytest.param({"pinned_bytes": 15 * MIB}, None, id="little"),
        pytest.param({"stuck_seconds": None}, None, id="read"),
        pytest.param({"stuck_seconds": 0.5}, None, id="watched for an instant"),
    ],
)
def test_when_unread_data_is_a_leak(changes: dict[str, Any], leak: LeakAnswer | None) -> None:
    assert [one.leak for one in found(**changes)] == ([] if leak is None else [leak])


def test_it_says_why_it_is_not_called_a_leak() -> None:
    (draft,) = found(stuck_seconds=9.0)
    assert "it is called a leak only after 10 s without a read: back-pressure of a few seconds is not a leak" in (
        draft.reasons
    )


def test_what_restarting_it_brings_back_is_said() -> None:
    (draft,) = found()
    assert draft.freed_by is not None
    assert draft.freed_by.action.startswith("Restart or fix python3[77]")
    assert draft.freed_by.size_bytes is not None
    assert draft.freed_by.size_bytes >= 200 * MIB
