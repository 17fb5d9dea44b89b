"""Blocks that change owners between the last scan of the holders and the end of the trace are not joined."""

from typing import Any

import pytest

from memdiag_api.evidence import Check, Evidence, Holder
from memdiag_node import capture
from memdiag_node.holders.registry import other_holders
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.allocations import MIB
from planted.sockets.planter import Planter

READ_LATER_BYTES = 32 * MIB
STUCK_MESSAGES = 1000  # each pins a block of order 3
TOLERANCE = 0.02


def holder_of(evidence: Evidence, inode: int) -> Holder:
    (holder,) = [one for one in evidence.holders if one.socket is not None and one.socket.inode == inode]
    return holder


def test_blocks_that_are_freed_and_allocated_again_after_the_scan_are_not_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One connection is read after its queue was walked, and another is filled from the same frames at once."""
    with Planter() as reading, Planter() as leaking, Planter() as stuck:
        read_later = reading.plant("tcp_bulk", READ_LATER_BYTES)
        read_later_inode = reading.inode(read_later["fd"])
        truth: dict[str, Any] = {}

        def plant_stuck(step: str) -> None:
            if step.startswith("tracing"):
                truth.update(stuck.plant("tcp_small_messages", STUCK_MESSAGES))
                truth["inode"] = stuck.inode(truth["fd"])

        def churn_before(*arguments: Any) -> Any:
            assert reading.plant("tcp_read_on", READ_LATER_BYTES)["read_bytes"] == READ_LATER_BYTES
            leaking.plant("tcp_bulk", READ_LATER_BYTES)
            return other_holders(*arguments)

        monkeypatch.setattr(capture, "other_holders", churn_before)
        settings = Settings(
            run_id="churn",
            node_name="here",
            checks=(Check.SOCKET_QUEUES, Check.ALLOC_PAGE_TRACE),
            duration_seconds=3.0,
            cpu_budget_share=1.0,
        )
        evidence = measure(settings, roots=HostRoots(), stop=Stop(), progress=plant_stuck)
    read_since = holder_of(evidence, read_later_inode)
    assert read_since.pinned_bytes >= READ_LATER_BYTES
    assert sum(part.size_bytes for part in read_since.filled_by) <= TOLERANCE * READ_LATER_BYTES
    still_there = holder_of(evidence, truth["inode"])
    assert sum(part.size_bytes for part in still_there.filled_by) == pytest.approx(truth["pinned_bytes"], rel=TOLERANCE)
