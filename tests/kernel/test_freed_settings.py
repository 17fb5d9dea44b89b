"""What a finding that names a setting of the node says would come back, and what comes back when it is set."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from memdiag_api.findings import Finding, FindingKind
from memdiag_api.memory_classes import ClassName
from planted.bpf_and_xdp import PinnedMaps, pinned_maps
from planted.cases import CASES
from planted.cases.case import UnavailableError
from planted.held_by_fd import FtraceBuffer, ftrace_buffer
from planted.packets import WaitingPackets, qdisc_backlog
from support.freed import assert_comes_back, findings, freed_by, largest

HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
SMALLEST_KB = 4


@dataclass(frozen=True, slots=True)
class Planted:
    """All loads at once, so that one run sees them."""

    buffer: FtraceBuffer
    packets: WaitingPackets
    maps: PinnedMaps
    has_compressed_disk: bool
    findings: list[Finding]


@pytest.fixture(scope="module")
def huge_pages_before() -> int:
    return int(HUGE_PAGES.read_text())


@pytest.fixture(scope="module")
def planted(huge_pages_before: int) -> Iterator[Planted]:
    """What was set before is set again at the end, and the planting process does that even if this one dies."""
    with ExitStack() as loads:
        reserved = loads.enter_context(CASES["hugepages_idle"].plant())
        assert reserved.size_bytes > 0, "the kernel could not set huge pages aside"
        buffer = loads.enter_context(ftrace_buffer())
        packets = loads.enter_context(qdisc_backlog(sender_exits=False))
        maps = loads.enter_context(pinned_maps())
        try:
            loads.enter_context(CASES["zram_disk"].plant())
            has_compressed_disk = True
        except UnavailableError:
            has_compressed_disk = False
        yield Planted(buffer, packets, maps, has_compressed_disk, findings())
    assert int(HUGE_PAGES.read_text()) == huge_pages_before


def write_as_said(finding: Finding) -> None:
    """Write what the finding says to the file that it names."""
    written = re.search(r"[Ww]rite (\d+) to (\S+?)[.:]?(?:\s|$)", freed_by(finding).action)
    assert written, freed_by(finding).action
    Path(written[2]).write_text(written[1])


def test_making_the_pool_of_huge_pages_smaller(planted: Planted, huge_pages_before: int) -> None:
    finding = largest(planted.findings, lambda one: one.kind is FindingKind.UNUSED_HUGE_PAGES)
    assert_comes_back(finding, lambda: write_as_said(finding))
    assert int(HUGE_PAGES.read_text()) <= huge_pages_before


def test_making_a_trace_buffer_smaller(planted: Planted) -> None:
    finding = largest(planted.findings, lambda one: any(planted.buffer.instance in reason for reason in one.reasons))
    assert "buffer_size_kb" in freed_by(finding).action
    size = instance_folder(planted.buffer) / "buffer_size_kb"
    assert_comes_back(finding, lambda: size.write_text(str(SMALLEST_KB)))


def instance_folder(buffer: FtraceBuffer) -> Path:
    """The folder of the trace instance, where the process that made it has mounted tracefs."""
    mounts = [line.split() for line in Path(f"/proc/{buffer.pid}/mounts").read_text().splitlines()]
    mount_point = next(where for _, where, kind, *_ in mounts if kind == "tracefs")
    return Path(f"/proc/{buffer.pid}/root{mount_point}/instances/{buffer.instance}")


def test_deleting_a_qdisc(planted: Planted) -> None:
    packets = planted.packets
    finding = largest(
        planted.findings, lambda one: one.kind is FindingKind.PACKETS_OUTSIDE_SOCKETS and packets.device in one.sentence
    )
    assert "tc qdisc del" in freed_by(finding).action
    command = ["nsenter", f"--target={packets.pid}", "--net", "tc", "qdisc", "del", "dev", packets.device, "root"]
    assert_comes_back(finding, lambda: subprocess.run(command, check=True), ClassName.SUNRECLAIM)


def test_deleting_the_files_that_pin_maps(planted: Planted) -> None:
    finding = largest(planted.findings, lambda one: bool(one.owner and one.owner.name.startswith("BPF map")))
    assert "delete the maps' files" in freed_by(finding).action
    folder = Path(f"/proc/{planted.maps.pid}/root{planted.maps.mount_point}")
    files = list(folder.glob("map-*"))
    assert len(files) == len(planted.maps.map_ids)

    def delete() -> None:
        for path in files:
            path.unlink()

    assert_comes_back(finding, delete)


def test_resetting_a_compressed_disk(planted: Planted) -> None:
    if not planted.has_compressed_disk:
        pytest.skip("there is no zram device that can be used")
    finding = largest(planted.findings, lambda one: one.memory_class == ClassName.ZSMALLOC)
    assert_comes_back(finding, lambda: write_as_said(finding))
