"""Events of inotify that nobody reads: counted, with their owner, and compared with the slab that they take."""

from pathlib import Path

import pytest

from memdiag_api.evidence import Holder, HolderKind
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.planter import Planter
from support.sockets import fds_of, other_holders_of

EVENTS, NAME_BYTES = 10_000, 200


def event_queues(scanner: SocketScanner, pid: int) -> list[Holder]:
    found = other_holders_of(scanner, scanner.scan())
    return [one for one in found if one.kind is HolderKind.EVENT_QUEUE and pid in fds_of(one)]


def objects_bytes(cache: str) -> int:
    """Bytes of the objects in use in the caches of this name, with and without accounting."""
    rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return sum(int(row[1]) * int(row[3]) for row in rows if row[0] in {f"kmalloc-{cache}", f"kmalloc-cg-{cache}"})


def test_unread_events_are_counted_with_their_owner_and_their_slab(scanner: SocketScanner, planter: Planter) -> None:
    before_bytes = objects_bytes("256")
    truth = planter.plant("inotify_events", EVENTS, NAME_BYTES)
    (one,) = event_queues(scanner, planter.pid)
    assert fds_of(one) == {planter.pid: [truth["fd"]]}
    assert one.memory_class == "SUnreclaim"
    assert one.unread_packets - truth["events"] in {0, 1}  # and the one that says that the watch was removed
    assert one.pinned_bytes == pytest.approx(objects_bytes("256") - before_bytes, rel=0.05)


def test_a_few_events_are_not_reported(scanner: SocketScanner, planter: Planter) -> None:
    planter.plant("inotify_events", 20, 10)
    assert event_queues(scanner, planter.pid) == []
