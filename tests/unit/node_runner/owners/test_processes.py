"""The scan of all processes: files as the kernel writes them, and processes that exit or cannot be read."""

import itertools
from pathlib import Path

import pytest

from memdiag_node.owners.address_spaces import AddressSpace
from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.processes import scan_processes
from memdiag_node.procfs.cgroup import ContainerIdentity
from support.cgroup_paths import CONTAINER, POD
from support.fixtures import RECORDED

KIB = 1024


def status_of(name: str, *, parent: int = 1, anon_kib: int = 100, threads: int = 1) -> str:
    return (
        f"Name:\t{name}\nPPid:\t{parent}\nUid:\t0\t0\t0\t0\nRssAnon:\t{anon_kib:8} kB\nRssFile:\t       4 kB\n"
        f"RssShmem:\t       8 kB\nVmExe:\t      20 kB\nVmPTE:\t      44 kB\nVmSwap:\t      16 kB\n"
        f"HugetlbPages:\t       0 kB\nThreads:\t{threads}\n"
    )


def without_memory(name: str, *, threads: int = 1) -> str:
    return f"Name:\t{name}\nPPid:\t2\nUid:\t0\t0\t0\t0\nThreads:\t{threads}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc without processes."""
    (tmp_path / "meminfo").write_bytes((RECORDED[0] / "proc/meminfo").read_bytes())
    return tmp_path


def plant(proc: Path, pid: int, status: str | None, cgroup: str | None = "0::/\n") -> None:
    directory = proc / str(pid)
    directory.mkdir()
    for name, text in (("status", status), ("cgroup", cgroup)):
        if text is not None:
            (directory / name).write_text(text)


def test_the_memory_of_a_process_and_its_container(proc: Path) -> None:
    plant(proc, 42, status_of("postgres", threads=3), f"0::/kubepods/burstable/pod{POD}/{CONTAINER}\n")
    (found,) = scan_processes(proc).processes
    assert found == ProcessMemory(
        pid=42,
        comm="postgres",
        parent_pid=1,
        identity=ContainerIdentity(CONTAINER, POD),
        rss_anon_bytes=100 * KIB,
        rss_shmem_bytes=8 * KIB,
        swap_bytes=16 * KIB,
        page_table_bytes=44 * KIB,
        hugetlb_bytes=0,
        threads=3,
        family=1,
    )


def test_kernel_threads_count_as_threads_only(proc: Path) -> None:
    plant(proc, 2, without_memory("kthreadd"))
    plant(proc, 42, status_of("a", threads=5))
    scan = scan_processes(proc)
    assert [one.pid for one in scan.processes] == [42]
    assert scan.threads == 6


def test_other_processes_are_read_although_one_exits_and_one_is_malformed(proc: Path) -> None:
    plant(proc, 41, status_of("a").replace("VmPTE:\t      44 kB", "VmPTE:\tx"))
    plant(proc, 42, None)  # exited while it was read
    plant(proc, 43, status_of("b"), None)
    plant(proc, 44, status_of("c"), "no cgroup line\n")
    plant(proc, 45, status_of("d"))
    (proc / "sys").mkdir()
    scan = scan_processes(proc)
    assert [one.pid for one in scan.processes] == [45]
    assert scan.malformed == 2
    assert scan.is_whole
    assert scan.anon_bytes


def test_a_process_whose_first_thread_has_ended_has_the_memory_of_the_others(proc: Path) -> None:
    plant(proc, 42, without_memory("a", threads=2))
    for thread, text in ((42, without_memory("a", threads=2)), (43, status_of("worker", threads=2))):
        plant_thread = proc / "42/task" / str(thread)
        plant_thread.mkdir(parents=True)
        (plant_thread / "status").write_text(text)
    (found,) = scan_processes(proc).processes
    assert (found.pid, found.comm, found.rss_anon_bytes, found.threads) == (42, "a", 100 * KIB, 2)


def test_a_zombie_has_no_memory(proc: Path) -> None:
    plant(proc, 42, without_memory("a"))
    assert scan_processes(proc).processes == []


def test_processes_with_one_address_space_are_one(proc: Path) -> None:
    plant(proc, 42, status_of("a", threads=2))
    plant(proc, 43, status_of("a", parent=42))
    spaces = {42: AddressSpace(7, (1, 2)), 43: AddressSpace(7, (1, 2))}
    (found,) = scan_processes(proc, address_spaces=spaces).processes
    assert found.threads == 3
    assert found.rss_anon_bytes == 100 * KIB


@pytest.mark.parametrize("limit", ["time", "number"])
def test_a_scan_that_is_cut_short_says_so(proc: Path, limit: str) -> None:
    for pid in range(40, 50):
        plant(proc, pid, status_of("a"))
    calls = itertools.count()
    scan = scan_processes(proc, late=lambda: next(calls) >= 4) if limit == "time" else scan_processes(proc, limit=4)
    assert len(scan.processes) == 4
    assert not scan.is_whole
    assert scan.anon_bytes is None


def test_names_are_made_printable(proc: Path) -> None:
    plant(proc, 42, status_of("\x1b[31mevil"))
    assert scan_processes(proc).processes[0].comm.isprintable()
