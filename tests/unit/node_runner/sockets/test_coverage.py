"""The coverage of a scan: what it saw and what it could not see."""

from dataclasses import replace

from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.scan import RECEIVE
from memdiag_node.walker.walker import Status
from support.socket_scans import UDP, scan_of


def test_what_the_first_scan_did_not_reach_counts_as_well() -> None:
    """Sockets that it did not see are never found stuck, however complete the second scan is."""
    whole = scan_of(UDP, [{"name": RECEIVE, "packets": 1}])
    cut = scan_of(UDP, [{"name": RECEIVE, "packets": 1, "status": Status.NOT_REACHED}])
    cut = replace(cut, sockets_not_reached=7, lists_every_fd=False, tables_complete=False, sees_linear_heads=False)
    for first, last in ((cut, whole), (whole, cut)):
        coverage = coverage_of(last, first=first)
        assert (coverage.sockets_not_reached, coverage.queues_not_reached) == (7, 1)
        assert not coverage.lists_every_fd
        assert not coverage.socket_tables_complete
        assert coverage.is_compared
        assert coverage.sees_linear_heads == last.sees_linear_heads
    assert not coverage_of(whole).is_compared
    assert coverage_of(whole).sockets_not_reached == coverage_of(whole).queues_not_reached == 0
