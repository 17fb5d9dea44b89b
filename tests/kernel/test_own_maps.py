"""The BPF maps that a run itself loads: not listed, in no finding, and part of the sizes of their classes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from memdiag_api.evidence import Check, Evidence, HolderKind
from memdiag_api.findings import FindingKind
from memdiag_api.owners import ClassShare
from memdiag_node.findings.naming import THIS_RUN
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.bpf_and_xdp import PinnedMaps, pinned_maps

MIB = 1 << 20
CHECKS = (Check.BREAKDOWN, Check.SOCKET_QUEUES, Check.ALLOC_PAGE_TRACE)
OWN_BYTES = 16 * MIB  # at least: the tables of the trace
TOLERANCE = 0.05


@dataclass(frozen=True, slots=True)
class Run:
    """A run beside pinned maps."""

    planted: PinnedMaps
    evidence: Evidence


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    settings = Settings(run_id="own", node_name="here", checks=CHECKS, duration_seconds=1.0)
    with pinned_maps() as planted:
        yield Run(planted, measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None))


def own_shares(evidence: Evidence) -> dict[str, ClassShare]:
    return {one.memory_class: share for one in evidence.owners for share in one.owners if share.owner.name == THIS_RUN}


def test_the_finding_about_pinned_maps_is_about_them_only(run: Run) -> None:
    findings = [
        one
        for one in run.evidence.findings
        if one.kind is FindingKind.LARGE_HOLDER and one.owner and one.owner.name.startswith("BPF map")
    ]
    (found,) = findings
    assert found.size_bytes == pytest.approx(run.planted.value_bytes, rel=TOLERANCE)
    ids = [run.evidence.holders[index].description.rpartition(" id ")[2] for index in found.evidence.holders]
    assert set(ids) == set(map(str, run.planted.map_ids))


def test_maps_of_the_run_are_not_listed(run: Run) -> None:
    maps = [one for one in run.evidence.holders if one.kind is HolderKind.BPF_MAP]
    assert len(maps) >= len(run.planted.map_ids)
    assert not [one for one in maps if os.getpid() in {owner.pid for owner in one.owners}]


def test_maps_of_the_run_are_an_owner_of_their_classes(run: Run) -> None:
    shares = own_shares(run.evidence)
    assert {"Vmalloc", "Percpu"} <= set(shares)
    assert shares["Vmalloc"].size_bytes >= OWN_BYTES
    assert run.evidence.summary
    sizes = [one.size_bytes for one in run.evidence.summary.holders if one.owner == THIS_RUN]
    assert shares["Vmalloc"].size_bytes in sizes
    (vmalloc,) = [one for one in run.evidence.owners if one.memory_class == "Vmalloc"]
    machine = run.evidence.machine
    assert machine
    assert machine.vmalloc
    assert sum(one.size_bytes for one in vmalloc.owners) <= sum(one.size_bytes for one in machine.vmalloc.callers)
