"""What findings say would come back (`freedBy`), and what the node gets back when that is done."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pytest

from accuracy.counters import class_sizes
from memdiag_api.evidence import Check, Evidence
from memdiag_api.findings import Finding, FreedBy
from memdiag_api.memory_classes import ClassName
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from support.machine_noise import change_by, too_busy

TOLERANCE = 0.1
_QUIET_SHARE = TOLERANCE / 4
_ROUNDS, _ROUND_SECONDS = 20, 1.0
_END_SECONDS = 10
_EVICTABLE_KIB = re.compile(r"^(?:Active|Inactive)\(file\):\s+(\d+) kB", re.MULTILINE)
_RSS_ANON_KIB = re.compile(r"^RssAnon:\s*(\d+) kB$", re.MULTILINE)
_CHECKS = tuple(check for check in Check if check is not Check.ALLOC_PAGE_TRACE)


def evidence() -> Evidence:
    """What a run of the node's runner on this machine measures, without a trace."""
    settings = Settings(run_id="freed", node_name="here", checks=_CHECKS, duration_seconds=1.0, thresholds=Thresholds())
    return measure(settings, roots=HostRoots(), stop=Stop(), progress=lambda _: None)


def findings() -> list[Finding]:
    """The findings of such a run."""
    return evidence().findings


def largest(found: Iterable[Finding], is_about: Callable[[Finding], bool]) -> Finding:
    """The largest finding of those. Fails if none is."""
    chosen = [one for one in found if is_about(one)]
    assert chosen, "no finding is about it"
    return max(chosen, key=lambda one: one.size_bytes)


def about_process(pid: int, memory_class: str) -> Callable[[Finding], bool]:
    """Whether a finding is about memory of that class of that process."""
    return lambda one: one.memory_class == memory_class and one.owner is not None and one.owner.pid == pid


def freed_by(finding: Finding) -> FreedBy:
    """What a finding says frees its memory. Fails if it does not say how much that is."""
    assert finding.freed_by is not None, finding.sentence
    assert finding.freed_by.size_bytes is not None, finding.sentence
    return finding.freed_by


def freed_bytes(finding: Finding) -> int:
    """The bytes that a finding says would come back."""
    size_bytes = freed_by(finding).size_bytes
    assert size_bytes is not None
    return size_bytes


def bytes_back(
    action: Callable[[], object],
    expected_bytes: int,
    *memory_classes: str,
    ended: Collection[int] = (),
    unevictable: bool = False,
) -> dict[str, int]:
    """What each of these classes loses by `action`, in bytes, by the kernel's own counters.

    `ended`: the pids of the processes that the action ends. AnonPages changes with every process of the machine: what
    all others count for themselves is not part of it here.
    `unevictable`: FileCache without what the kernel can evict. A machine whose DAMON evicts cold pages loses cache all
    the time, without a count of it.

    Fails the test if the sum of the classes does not come to rest within a small part of `expected_bytes`.
    """
    readings: list[dict[str, int]] = []
    before: list[dict[str, int]] = []

    def read() -> int:
        sizes = class_sizes()
        if ClassName.ANON_PAGES in memory_classes:
            sizes[ClassName.ANON_PAGES] -= _anon_bytes_without(ended)
        if unevictable:
            sizes[ClassName.FILE_CACHE] -= _evictable_bytes()
        readings.append(sizes)
        return sum(readings[-1][name] for name in memory_classes)

    def act() -> None:
        before.append(readings[-1])
        action()

    for _ in range(_ROUNDS):
        if change_by(act, read, quiet_bytes=_QUIET_SHARE * expected_bytes) is not None:
            return {name: before[0][name] - readings[-1][name] for name in memory_classes}
        if before:
            break
        time.sleep(_ROUND_SECONDS)
    raise too_busy(f"the sum of {', '.join(memory_classes)} did not come to rest")


def _anon_bytes_without(ended: Collection[int]) -> int:
    """The anonymous memory of all other processes, each as it counts it itself."""
    size_bytes = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        if int(path.parent.name) not in ended:
            with contextlib.suppress(OSError):
                size_bytes += sum(int(size) << 10 for size in _RSS_ANON_KIB.findall(path.read_text()))
    return size_bytes


def _evictable_bytes() -> int:
    """The cache of files that is on the kernel's lists of pages that it can evict."""
    return sum(int(size) << 10 for size in _EVICTABLE_KIB.findall(Path("/proc/meminfo").read_text()))


def assert_comes_back(
    finding: Finding,
    action: Callable[[], object],
    *other_classes: str,
    ended: Collection[int] = (),
    unevictable: bool = False,
) -> None:
    """Do what the finding says, and compare. `other_classes`: where a part of it is besides the finding's class.

    `ended`, `unevictable`: as for `bytes_back`.
    """
    expected_bytes = freed_bytes(finding)
    back = bytes_back(
        action, expected_bytes, finding.memory_class, *other_classes, ended=ended, unevictable=unevictable
    )
    assert expected_bytes == pytest.approx(sum(back.values()), rel=TOLERANCE), (finding.sentence, back)


def kill(pid: int) -> None:
    """End a process at once, as the kernel would for lack of memory."""
    os.kill(pid, signal.SIGKILL)


def pids_in(cgroup: Path) -> list[int]:
    """The processes of a cgroup."""
    return [int(pid) for pid in (cgroup / "cgroup.procs").read_text().split()]


def kill_cgroup(path: Path) -> None:
    """End all processes of a cgroup, and wait for their end, as a container runtime does."""
    end = time.monotonic() + _END_SECONDS
    while pids := pids_in(path):
        assert time.monotonic() < end, f"{pids} do not end"
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                kill(pid)
        time.sleep(0.05)


@contextlib.contextmanager
def may_be_killed() -> Iterator[None]:
    """Around a load whose process a test kills: that its child was killed is then no error."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).endswith(f"ended with {-signal.SIGKILL}"):
            raise
