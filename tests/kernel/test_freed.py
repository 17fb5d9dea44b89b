"""What a finding about memory of a process says would come back, and what comes back when the process is killed."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from memdiag_api.findings import Finding
from memdiag_api.memory_classes import ClassName
from planted.cases import CASES
from planted.cases.case import PlantedTruth
from support.freed import about_process, assert_comes_back, findings, kill, largest, may_be_killed

NAMES: dict[str, tuple[str, ...]] = {
    "full_pipes": (),
    "packet_ring": (),
    "perf_buffers": (),
    "io_uring_rings": (),
    "tun_queue": (ClassName.SUNRECLAIM,),
    "unread_netlink": (),
    "bpf_maps": (),
    "tmpfs_file": (),
    "anonymous_memory": (),
    "many_threads": (ClassName.SUNRECLAIM,),
}
"""Cases of one process, and where a part of their memory is besides the class of the finding: heads of packets, and
what the kernel has for each thread.

Each is of 175 MiB or more: what else happens on the machine meanwhile is small beside that.
"""


@dataclass(frozen=True, slots=True)
class Planted:
    """All loads at once, so that one run sees them."""

    truths: dict[str, PlantedTruth]
    findings: list[Finding]


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    with ExitStack() as loads:
        truths = {}
        for name in NAMES:
            loads.enter_context(may_be_killed())
            truths[name] = loads.enter_context(CASES[name].plant())
        yield Planted(truths, findings())


@pytest.mark.parametrize("name", NAMES)
def test_killing_the_owner_brings_back_what_the_finding_says(planted: Planted, name: str) -> None:
    truth = planted.truths[name]
    (pid,), (memory_class, *_) = truth.pids, truth.memory_classes
    finding = largest(planted.findings, about_process(pid, memory_class))
    assert_comes_back(finding, lambda: kill(pid), *NAMES[name], ended={pid})
