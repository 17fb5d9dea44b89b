"""/proc/PID/status: the memory of processes, and what kernel threads and exited ones lack."""

from dataclasses import replace
from pathlib import Path

import pytest

from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.status import ProcessSizes, ProcessStatus, parse_status
from support.fixtures import RECORDED, RECORDED_IDS

KIB = 1024
# Recorded from a 6.18 kernel; lines between were removed.
PROCESS = b"""Name:\tpostgres
State:\tS (sleeping)
PPid:\t812
Uid:\t70\t70\t70\t70
VmPeak:\t   23060 kB
RssAnon:\t    2112 kB
RssFile:\t    1656 kB
RssShmem:\t   18432 kB
VmExe:\t      20 kB
VmPTE:\t     244 kB
VmSwap:\t      12 kB
HugetlbPages:\t    4096 kB
Threads:\t3
"""
KERNEL_THREAD = b"Name:\tkworker/0:1\nState:\tI (idle)\nPPid:\t2\nUid:\t0\t0\t0\t0\nThreads:\t1\n"
SIZES = ProcessSizes(
    rss_anon_bytes=2112 * KIB,
    rss_file_bytes=1656 * KIB,
    rss_shmem_bytes=18432 * KIB,
    swap_bytes=12 * KIB,
    page_table_bytes=244 * KIB,
    hugetlb_bytes=4096 * KIB,
    code_bytes=20 * KIB,
)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (PROCESS, ProcessStatus(b"postgres", 70, 812, 3, SIZES)),
        (KERNEL_THREAD, ProcessStatus(b"kworker/0:1", 0, 2, 1, None)),
        (
            PROCESS.replace(b"HugetlbPages:\t    4096 kB\n", b""),
            ProcessStatus(b"postgres", 70, 812, 3, replace(SIZES, hugetlb_bytes=0)),
        ),
        (b"Name:\tx\nUid:\t1\t1\t1\t1\nState:\tZ (zombie)\nThreads:\t1\n", ProcessStatus(b"x", 1, 0, 1, None)),
    ],
    ids=["process", "kernel thread", "kernel without hugetlbfs", "zombie"],
)
def test_status(text: bytes, status: ProcessStatus) -> None:
    assert parse_status(text) == status


def test_a_name_cannot_pretend_to_be_another_line() -> None:
    text = PROCESS.replace(b"Name:\tpostgres", b"Name:\tx\\nRssAnon:\\t9 kB")
    status = parse_status(text)
    assert status.comm == b"x\nRssAnon:\\t9 kB"
    assert status.sizes == SIZES


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"VmPTE:\t     244 kB", b"VmPTE:\t244", "a number and ` kB`"),
        (b"RssAnon:\t    2112 kB", b"RssAnon:\t-1 kB", "a number and ` kB`"),
        (b"Threads:\t3", b"Threads:\tmany", "a number"),
    ],
)
def test_a_malformed_line_is_named(old: bytes, new: bytes, expected: str) -> None:
    with pytest.raises(ProcFormatError, match=expected):
        parse_status(PROCESS.replace(old, new))


@pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)
def test_recorded_machines(machine: Path) -> None:
    status = parse_status((machine / "proc/self/status").read_bytes())
    assert status.threads >= 1
    assert status.sizes is not None
    assert status.sizes.rss_anon_bytes > 0
    assert status.sizes.page_table_bytes > 0
    assert status.sizes.code_bytes > 0
