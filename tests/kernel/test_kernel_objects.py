"""The check KernelObjects in a whole run: what it finds is in the document, and a part that fails costs only itself."""

from typing import Any

import pytest

from memdiag_api.evidence import Check, Evidence, HolderKind, NeedState
from memdiag_node.census.files import files
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.held_by_fd import slab_leak, tun_queue
from planted.packets import qdisc_backlog

PARTS = ("slab", "clues", "packets", "namespaces", "files", "dentries")
CHECKS = (Check.BREAKDOWN, Check.SOCKET_QUEUES, Check.KERNEL_OBJECTS)


def run(checks: tuple[Check, ...] = CHECKS, *, with_paths: bool = True) -> Evidence:
    settings = Settings(
        run_id="objects", node_name="here", checks=checks, duration_seconds=0.5, report_paths=with_paths
    )
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)


def read_parts(evidence: Evidence) -> dict[str, Any]:
    """The parts of the census that are in the document."""
    return {name: part for name in PARTS if (part := getattr(evidence.census, name)) is not None}


def test_packets_and_slab_that_nothing_else_explains_are_named() -> None:
    with qdisc_backlog() as backlog, tun_queue() as tun, slab_leak() as messages:
        evidence = run()
    census = read_parts(evidence)
    assert evidence.ledger
    (waiting,) = [
        one
        for one in evidence.holders
        if one.kind is HolderKind.PACKET_QUEUE and f"network namespace {backlog.network_namespace}" in one.description
    ]
    assert f"in the qdisc of {backlog.device}" in waiting.description
    assert waiting.pinned_bytes == pytest.approx(backlog.packet_bytes, rel=0.02)
    assert (waiting.owners, waiting.unowned_reason != "") == ([], True)
    queues = [one for one in evidence.holders if one.kind is HolderKind.TUN_QUEUE]
    (queue,) = [one for one in queues if tun.device in one.description]
    assert [owner.pid for owner in queue.owners] == [tun.pid]
    lines = {line.name: line.size_bytes for line in evidence.ledger.lines}
    assert lines["PacketQueues"] >= waiting.pinned_bytes  # the packets of the tun queue are the fd's alone
    assert lines["TunQueues"] == pytest.approx(queue.pinned_bytes, rel=0.02)
    (zombie,) = [one for one in census["namespaces"].listed if one.inode == backlog.network_namespace]
    assert zombie.is_zombie
    assert zombie.size_bytes >= backlog.packet_bytes
    planted_bytes = messages.messages * messages.object_bytes
    cache = max(
        (one for one in census["slab"].caches if one.object_bytes == messages.object_bytes),
        key=lambda one: one.size_bytes,
    )
    assert cache.size_bytes == pytest.approx(planted_bytes, rel=0.05)  # others have objects in it too


def test_the_census_needs_no_other_check() -> None:
    evidence = run((Check.KERNEL_OBJECTS,))
    assert evidence.checks == [Check.KERNEL_OBJECTS]
    assert not [need for need in evidence.needs if need.state is NeedState.MISSING]
    assert set(read_parts(evidence)) == set(PARTS)


def test_a_part_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a new layout")

    monkeypatch.setattr(files, "read_files", fail)
    evidence = run((Check.KERNEL_OBJECTS,))
    assert evidence.checks == [Check.KERNEL_OBJECTS]
    (need,) = [one for one in evidence.needs if one.state is NeedState.DEGRADED]
    assert "reading the files failed: RuntimeError: a new layout" in need.detail
    assert set(read_parts(evidence)) == set(PARTS) - {"files"}


def test_without_paths_no_name_of_a_file_is_reported() -> None:
    with_names, without = (read_parts(run((Check.KERNEL_OBJECTS,), with_paths=chosen)) for chosen in (True, False))
    assert any(one.path for one in with_names["files"].files)
    assert not any(one.path for one in without["files"].files)
    assert not any("/" in share.path for share in without["dentries"].directories)
