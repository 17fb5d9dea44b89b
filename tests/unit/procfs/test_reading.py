"""Reading the counters from a tree, and saying what is missing: with files that really are missing or unreadable."""

import shutil
from pathlib import Path

import pytest

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.host import HostRoots, read_host
from memdiag_node.procfs.balloon import balloon_stays_in_total
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.reading import needs, read_surroundings, take_reading, take_readings
from support.fixtures import RECORDED, RECORDED_IDS, roots_of

LIVE = HostRoots()


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A recorded machine that a test may break."""
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


def test_this_machine_is_read_as_often_as_asked() -> None:
    readings = take_readings(LIVE, count=3, gap_seconds=0)
    assert len(readings) == 3
    assert len({reading.surroundings for reading in readings}) == 1


def test_without_the_boot_log_the_first_chunk_is_estimated_within_its_error(machine: Path) -> None:
    told = read_surroundings(roots_of(machine), kernel_log=(machine / "kernel_log").read_bytes())
    estimated = read_surroundings(roots_of(machine), kernel_log=None)
    assert told.first_chunk_error_bytes == 0 < estimated.first_chunk_error_bytes
    assert abs(told.first_chunk_bytes - estimated.first_chunk_bytes) <= estimated.first_chunk_error_bytes


def test_a_kernel_that_does_not_sum_up_vmalloc_has_it_summed(machine: Path) -> None:
    """VmallocUsed is 0 before Linux 5.3: the areas' own pages stand in for it."""
    roots = roots_of(machine)
    surroundings = read_surroundings(roots, kernel_log=None)
    newer = take_reading(roots, surroundings)
    meminfo = (machine / "proc/meminfo").read_text().splitlines()
    older = [line if not line.startswith("VmallocUsed") else "VmallocUsed:           0 kB" for line in meminfo]
    (machine / "proc/meminfo").write_text("\n".join(older) + "\n")
    assert take_reading(roots, surroundings).vmalloc_bytes == pytest.approx(newer.vmalloc_bytes, abs=256 * 1024)


@pytest.mark.parametrize("name", ["proc/meminfo", "proc/zoneinfo", "proc/vmstat", "sys/devices/system/cpu/possible"])
def test_a_missing_file_that_nothing_replaces_is_a_missing_need(machine: Path, name: str) -> None:
    (machine / name).unlink()
    found = need(roots_of(machine), name)
    assert (found.state, found.checks) == (NeedState.MISSING, [Check.BREAKDOWN])
    assert "No such file" in found.detail
    assert found.remedy


@pytest.mark.parametrize("name", ["proc/vmallocinfo", "proc/sys/vm/stat_refresh"])
def test_a_missing_file_that_can_be_done_without_degrades(machine: Path, name: str) -> None:
    (machine / name).unlink(missing_ok=True)
    found = need(roots_of(machine), name)
    assert found.state == NeedState.DEGRADED
    assert found.detail
    assert found.remedy
    surroundings = read_surroundings(roots_of(machine), kernel_log=None)
    assert surroundings.stacks_in_vmalloc
    assert take_reading(roots_of(machine), surroundings)


def test_a_huge_page_size_that_is_none_is_refused(machine: Path) -> None:
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


def test_vmwares_balloon_stays_in_the_total(tmp_path: Path) -> None:
    assert not balloon_stays_in_total(tmp_path)
    (tmp_path / "module/vmw_balloon").mkdir(parents=True)
    assert balloon_stays_in_total(tmp_path)
