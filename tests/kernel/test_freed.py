"""What a finding says would come back, and what comes back when the planted case ends."""

import pytest

from accuracy.counters import class_sizes, settled_class_sizes
from memdiag_api.evidence import Check
from memdiag_api.findings import Finding
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.cases import CASES

TOLERANCE = 0.1
CHECKS = (Check.BREAKDOWN, Check.SOCKET_QUEUES, Check.KERNEL_OBJECTS, Check.OWNERS)


def findings() -> list[Finding]:
    settings = Settings(run_id="freed", node_name="here", checks=CHECKS, duration_seconds=1.0, thresholds=Thresholds())
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None).findings


@pytest.mark.parametrize("name", ["full_pipes", "bpf_maps", "tmpfs_file", "anonymous_memory"])
def test_ending_the_owner_brings_back_what_the_finding_says(name: str) -> None:
    """Each is of 200 MiB or more: what else happens on the machine meanwhile is small beside that."""
    with CASES[name].plant() as truth:
        found = [one for one in findings() if one.owner and one.owner.pid in truth.pids]
        finding = max(
            (one for one in found if one.memory_class in truth.memory_classes), key=lambda one: one.size_bytes
        )
        assert finding.freed_by is not None
        assert finding.freed_by.size_bytes is not None
        before = class_sizes()
    after = settled_class_sizes()
    back_bytes = before[finding.memory_class] - after[finding.memory_class]
    assert finding.freed_by.size_bytes == pytest.approx(back_bytes, rel=TOLERANCE), finding.sentence
