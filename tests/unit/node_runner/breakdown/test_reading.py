"""Reading the counters, and reporting what is missing: with files that are really missing or unreadable."""

import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.breakdown.classes import alloc_page_bytes, breakdown
from memdiag_node.breakdown.reading import MemoryReading, take_reading, take_readings
from memdiag_node.breakdown.surroundings import read_surroundings
from memdiag_node.host import read_host
from memdiag_node.preflight.counters import needs
from memdiag_node.procfs.balloon import balloon_stays_in_total, free_pages_are_reported
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.vmallocinfo import has_stack
from support.fixtures import RECORDED, RECORDED_IDS, roots_of

LIVE = HostRoots()
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A copy of a recorded machine that a test can modify."""
    return Path(shutil.copytree(RECORDED[0], tmp_path / "machine"))


def need(roots: HostRoots, name_end: str) -> Need:
    (found,) = [each for each in needs(roots) if each.name.endswith(name_end)]
    return found


@pytest.mark.parametrize("recorded", RECORDED, ids=RECORDED_IDS)
def test_a_host_describes_itself(recorded: Path) -> None:
    host = read_host(roots_of(recorded), "worker-3")
    version = recorded.name.split("-")[1]
    assert host.node_name == "worker-3"
    assert host.kernel_release.startswith(version)
    assert (host.cpus, host.boot_id) == (2, "00000000-0000-0000-0000-000000000000")


def test_this_machine_is_read_the_requested_number_of_times() -> None:
    readings = take_readings(LIVE, count=3, gap_seconds=0)
    assert len(readings) == 3
    assert len({reading.surroundings for reading in readings}) == 1


def test_without_the_boot_log_the_first_chunk_is_estimated_within_its_error(machine: Path) -> None:
    found = read_surroundings(roots_of(machine), kernel_log=(machine / "kernel_log").read_bytes())
    estimated = read_surroundings(roots_of(machine), kernel_log=None)
    assert found.first_chunk_error_bytes == 0 < estimated.first_chunk_error_bytes
    assert abs(found.first_chunk_bytes - estimated.first_chunk_bytes) <= estimated.first_chunk_error_bytes


def test_vmalloc_is_summed_up_if_the_kernel_does_not(machine: Path) -> None:
    """VmallocUsed is 0 before Linux 5.3: the pages of the areas are used instead."""
    roots = roots_of(machine)
    surroundings = read_surroundings(roots, kernel_log=None)
    newer = take_reading(roots, surroundings)
    meminfo = (machine / "proc/meminfo").read_text().splitlines()
    older = [line if not line.startswith("VmallocUsed") else "VmallocUsed:           0 kB" for line in meminfo]
    (machine / "proc/meminfo").write_text("\n".join(older) + "\n")
    assert take_reading(roots, surroundings).vmalloc_bytes == pytest.approx(newer.vmalloc_bytes, abs=256 * 1024)


@pytest.mark.parametrize("name", ["proc/meminfo", "proc/zoneinfo", "proc/vmstat", "sys/devices/system/cpu/possible"])
def test_a_missing_required_file_is_a_missing_need(machine: Path, name: str) -> None:
    (machine / name).unlink()
    found = need(roots_of(machine), name)
    assert (found.state, found.checks) == (NeedState.MISSING, [Check.BREAKDOWN, Check.OWNERS])
    assert "No such file" in found.detail
    assert found.remedy


@pytest.mark.parametrize("name", ["proc/vmallocinfo", "proc/sys/vm/stat_refresh"])
def test_a_missing_optional_file_is_a_degraded_need(machine: Path, name: str) -> None:
    (machine / name).unlink(missing_ok=True)
    found = need(roots_of(machine), name)
    assert found.state == NeedState.DEGRADED
    assert found.detail
    assert found.remedy
    surroundings = read_surroundings(roots_of(machine), kernel_log=None)
    assert surroundings.stacks_in_vmalloc
    assert take_reading(roots_of(machine), surroundings)


@pytest.mark.parametrize("name", ["isolated", "nohz_full"])
def test_stat_refresh_is_not_used_with_isolated_cpus(machine: Path, name: str) -> None:
    """vm.stat_refresh waits for every CPU. A FIFO in its place shows whether it is opened: that would block, too."""
    (machine / "sys/devices/system/cpu" / name).write_text("2-3\n")
    refresh = machine / "proc/sys/vm/stat_refresh"
    refresh.parent.mkdir(parents=True, exist_ok=True)
    refresh.unlink(missing_ok=True)
    os.mkfifo(refresh)
    roots = roots_of(machine)
    readings = take_readings(roots, count=3, gap_seconds=0)
    found = need(roots, "stat_refresh")
    assert found.state is NeedState.DEGRADED
    assert "2 CPUs are isolated" in found.detail
    assert readings[0].surroundings.undisturbed_cpus == 2
    quiet = [replace(one, surroundings=replace(one.surroundings, undisturbed_cpus=0)) for one in readings]
    extra_bytes = breakdown(readings).alloc_page_error_bytes - breakdown(quiet).alloc_page_error_bytes
    assert extra_bytes == round(2 * 125 * math.sqrt(2 * 13 / 3)) * PAGE_BYTES


@pytest.mark.parametrize("text", ["\n", "(null)\n", ""])
def test_stat_refresh_is_used_without_isolated_cpus(machine: Path, text: str) -> None:
    for name in ("isolated", "nohz_full"):
        (machine / "sys/devices/system/cpu" / name).write_text(text)
    (machine / "proc/sys/vm").mkdir(parents=True, exist_ok=True)
    (machine / "proc/sys/vm/stat_refresh").write_text("")
    assert need(roots_of(machine), "stat_refresh").state is NeedState.MET
    assert take_readings(roots_of(machine), count=1)[0].surroundings.undisturbed_cpus == 0


def test_a_malformed_list_of_isolated_cpus_counts_as_all(machine: Path) -> None:
    (machine / "sys/devices/system/cpu/isolated").write_text("all\n")
    found = need(roots_of(machine), "stat_refresh")
    assert found.state is NeedState.DEGRADED
    assert read_surroundings(roots_of(machine), kernel_log=None).undisturbed_cpus == os.cpu_count()


@pytest.mark.parametrize(("strings", "in_vmalloc"), [(b"\0stack\0stack_vm_area\0", True), (b"\0stack\0", False)])
def test_stacks_are_found_from_btf_without_reading_the_areas(machine: Path, strings: bytes, in_vmalloc: bool) -> None:
    (machine / "sys/kernel/btf").mkdir(parents=True)
    (machine / "sys/kernel/btf/vmlinux").write_bytes(strings)
    areas = machine / "proc/vmallocinfo"
    areas.unlink()
    os.mkfifo(areas)  # opening it would hang
    roots = roots_of(machine)
    assert read_surroundings(roots, kernel_log=None).stacks_in_vmalloc is in_vmalloc
    assert not [one for one in needs(roots) if one.name.endswith("vmallocinfo")]


def test_this_kernels_btf_and_its_areas_agree_on_where_stacks_are(tmp_path: Path) -> None:
    with Path("/proc/vmallocinfo").open("rb") as lines:
        by_areas = has_stack(lines)
    assert read_surroundings(LIVE, kernel_log=None).stacks_in_vmalloc is by_areas


def test_areas_are_only_read_up_to_the_first_stack(machine: Path) -> None:
    lines = (machine / "proc/vmallocinfo").read_bytes().splitlines(keepends=True)
    read: list[bytes] = []
    assert has_stack(read.append(line) or line for line in lines)  # type: ignore[func-returns-value] # append returns None
    assert b" kernel_clone+" in read[-1]
    assert not any(b" kernel_clone+" in line for line in read[:-1])
    assert len(read) < len(lines)


def test_a_malformed_huge_page_size_is_rejected(machine: Path) -> None:
    (machine / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size").write_text("large\n")
    with pytest.raises(ProcFormatError, match="expected a size in bytes, found 'large"):
        read_surroundings(roots_of(machine), kernel_log=None)


def test_a_kernel_without_huge_pages_has_none(machine: Path) -> None:
    (machine / "sys/kernel/mm/transparent_hugepage/hpage_pmd_size").unlink()
    assert read_surroundings(roots_of(machine), kernel_log=None).huge_page_bytes == 0


@pytest.mark.parametrize(("features", "stays"), [("0110010", True), ("0100010", False), ("", False)])
def test_a_virtio_balloon_stays_in_the_total_when_it_deflates_on_oom(
    tmp_path: Path, features: str, stays: bool
) -> None:
    device = tmp_path / "bus/virtio/drivers/virtio_balloon/virtio3"
    device.mkdir(parents=True)
    (device / "features").write_text(features + "\n")
    assert balloon_stays_in_total(tmp_path) is stays


@pytest.mark.parametrize(("features", "reported"), [("0110010", True), ("0110000", False), ("", False)])
def test_a_virtio_balloon_may_report_free_pages(tmp_path: Path, features: str, reported: bool) -> None:
    device = tmp_path / "bus/virtio/drivers/virtio_balloon/virtio3"
    device.mkdir(parents=True)
    (device / "features").write_text(features + "\n")
    assert free_pages_are_reported(tmp_path) is reported


def test_hyper_vs_balloon_reports_free_pages(tmp_path: Path) -> None:
    driver = tmp_path / "bus/vmbus/drivers/hv_balloon"
    driver.mkdir(parents=True)
    (driver / "uevent").touch()
    assert not free_pages_are_reported(tmp_path)
    (driver / "1eccfd72-4b41-45ef-b73a-4a6e44c12924").mkdir()
    assert free_pages_are_reported(tmp_path)


def first_chunk_error_bytes(readings: list[MemoryReading]) -> int:
    return readings[0].surroundings.first_chunk_error_bytes


@pytest.mark.parametrize("away_at_seconds", [0.0, 0.25, 0.55])
def test_free_pages_that_are_being_reported_are_not_allocpage(
    machine: Path, monkeypatch: pytest.MonkeyPatch, away_at_seconds: float
) -> None:
    """That takes 0.38 s: all readings that are close to each other could be within it."""
    device = machine / "sys/bus/virtio/drivers/virtio_balloon/virtio3"
    device.mkdir(parents=True)
    (device / "features").write_text("0000010\n")
    meminfo = machine / "proc/meminfo"
    before, free = meminfo.read_text(), re.compile(r"(?<=MemFree:)\s+(\d+)")
    away = free.sub(lambda found: str(int(found[1]) - (128 << 10)).rjust(len(found[0])), before)
    now_seconds = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_seconds
        now_seconds += seconds
        meminfo.write_text(away if away_at_seconds <= now_seconds < away_at_seconds + 0.38 else before)

    expected_bytes = breakdown(take_readings(roots_of(machine), count=1)).alloc_page_bytes
    now_seconds = 0.0
    sleep(0)
    monkeypatch.setattr("memdiag_node.breakdown.reading.time.sleep", sleep)
    readings = take_readings(roots_of(machine))
    assert len({alloc_page_bytes(one) for one in readings}) == 2  # some were within it
    found = breakdown(readings)
    assert (found.alloc_page_bytes, found.alloc_page_error_bytes) == (expected_bytes, first_chunk_error_bytes(readings))


def test_vmwares_balloon_stays_in_the_total(tmp_path: Path) -> None:
    assert not balloon_stays_in_total(tmp_path)
    (tmp_path / "module/vmw_balloon").mkdir(parents=True)
    assert balloon_stays_in_total(tmp_path)
