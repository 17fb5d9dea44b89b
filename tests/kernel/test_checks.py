"""Each check can be run alone: it measures what its name says, and nothing that another check is for."""

import pytest

from memdiag_api.evidence import Check, Evidence, LeakDetected
from memdiag_api.memory_classes import ClassName
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from support.memory_cgroup import container_cgroup

PARTS = {
    Check.BREAKDOWN: {"breakdown", "machine"},
    Check.ALLOC_PAGE_TRACE: {"trace"},
    Check.SOCKET_QUEUES: {"coverage"},
    Check.KERNEL_OBJECTS: {"slab"},
    Check.OWNERS: {"owners"},
    Check.CONTAINERS: {"containers", "removed_cgroups"},
}
"""What is in the document if, and only if, this check was run."""


def measured(*checks: Check) -> Evidence:
    settings = Settings(run_id="checks", node_name="here", checks=checks, duration_seconds=0.5)
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)


def parts(evidence: Evidence) -> set[str]:
    found = {
        "breakdown": evidence.breakdown,
        "machine": evidence.machine,
        "trace": evidence.trace,
        "coverage": evidence.coverage,
        "slab": evidence.census and evidence.census.slab,
        "owners": [one for one in evidence.owners if one.memory_class == ClassName.ANON_PAGES],
        "containers": evidence.containers,
        "removed_cgroups": evidence.removed_cgroups,
    }
    return {name for name, part in found.items() if part}


@pytest.mark.parametrize("check", [check for check in Check if check is not Check.OWNERS])
def test_a_check_alone_measures_its_part(check: Check) -> None:
    with container_cgroup():
        evidence = measured(check)
    assert evidence.checks == [check]
    assert parts(evidence) == PARTS[check]
    assert evidence.leak_detected is LeakDetected.UNKNOWN


def test_owners_are_those_of_the_classes_of_the_breakdown() -> None:
    evidence = measured(Check.BREAKDOWN, Check.OWNERS)
    assert evidence.checks == [Check.BREAKDOWN, Check.OWNERS]
    assert parts(evidence) == PARTS[Check.BREAKDOWN] | PARTS[Check.OWNERS]


def test_without_the_breakdown_the_owners_are_reported_as_missing() -> None:
    evidence = measured(Check.CONTAINERS, Check.OWNERS)
    assert evidence.checks == [Check.CONTAINERS]
    (need,) = [one for one in evidence.needs if one.checks == [Check.OWNERS]]
    assert "the classes of memory whose owners it determines were not measured" in need.detail
