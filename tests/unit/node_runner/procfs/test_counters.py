"""The machine-wide files, as real kernels write them."""

from pathlib import Path

import pytest

from memdiag_node.procfs.cpulist import parse_cpu_count
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kernel_log import parse_first_chunk_pages_per_cpu
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.vmallocinfo import VmallocInfo, parse_vmallocinfo
from memdiag_node.procfs.vmstat import parse_vmstat
from memdiag_node.procfs.zoneinfo import ZoneFreeLists, parse_zoneinfo
from support.fixtures import RECORDED, RECORDED_IDS

every_machine = pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)


@every_machine
def test_the_recorded_files_agree_with_each_other(machine: Path) -> None:
    """VmallocUsed in meminfo is the sum of vmallocinfo. vmstat counts the LRU pages that meminfo shows."""
    meminfo = parse_meminfo((machine / "proc/meminfo").read_bytes())
    vmalloc = parse_vmallocinfo((machine / "proc/vmallocinfo").read_bytes())
    zones = parse_zoneinfo((machine / "proc/zoneinfo").read_bytes())
    cpus = parse_cpu_count((machine / "sys/devices/system/cpu/online").read_bytes())
    assert vmalloc.has_stacks
    assert vmalloc.vmalloc_pages * 4096 == pytest.approx(meminfo.vmalloc_bytes, abs=256 * 1024)
    assert {len(zone.per_cpu_pages) for zone in zones if zone.per_cpu_pages} == {cpus}
    assert "Normal" in {zone.zone for zone in zones} or "DMA32" in {zone.zone for zone in zones}
    assert 0 < sum(sum(zone.per_cpu_pages) for zone in zones) * 4096 < meminfo.mem_total_bytes - meminfo.mem_free_bytes


@every_machine
def test_the_boot_log_has_the_first_chunk(machine: Path) -> None:
    """It is part of `Percpu`, so it cannot be larger."""
    pages = parse_first_chunk_pages_per_cpu((machine / "kernel_log").read_bytes())
    cpus = parse_cpu_count((machine / "sys/devices/system/cpu/possible").read_bytes())
    assert pages is not None
    assert 0 < pages * cpus * 4096 <= parse_meminfo((machine / "proc/meminfo").read_bytes()).percpu_bytes


def test_a_log_without_its_start_has_no_first_chunk() -> None:
    assert parse_first_chunk_pages_per_cpu(b"<6>[99.1] eth0: link up\n") is None


def meminfo_text(**changes: str | None) -> bytes:
    lines = dict(line.split(":", 1) for line in (RECORDED[0] / "proc/meminfo").read_text().splitlines())
    lines.update({name: f" {value}" for name, value in changes.items() if value is not None})
    return "".join(f"{name}:{value}\n" for name, value in lines.items() if changes.get(name, "") is not None).encode()


def test_meminfo_of_an_older_kernel_lacks_what_it_does_not_count() -> None:
    older = parse_meminfo(meminfo_text(SecPageTables=None, Percpu=None, Hugetlb=None, HugePages_Total="3"))
    assert (older.secondary_page_table_bytes, older.percpu_bytes, older.balloon_bytes) == (0, 0, None)
    assert older.hugetlb_bytes == 3 * 2 * 1024 * 1024


def test_hugetlb_counts_the_pools_of_every_size() -> None:
    assert parse_meminfo(meminfo_text(Hugetlb="1050624 kB", HugePages_Total="1")).hugetlb_bytes == 1050624 * 1024


def test_the_error_names_a_malformed_meminfo_line() -> None:
    with pytest.raises(ProcFormatError, match=r"^/proc/meminfo:2: expected `Name: number`.*, found 'MemFree: lots'$"):
        parse_meminfo(b"MemTotal: 1 kB\nMemFree: lots\n", source="/proc/meminfo")


def test_a_meminfo_without_a_figure_that_every_kernel_has_is_rejected() -> None:
    with pytest.raises(ProcFormatError, match="expected a line Shmem"):
        parse_meminfo(meminfo_text(Shmem=None))


def test_vmstat_counts() -> None:
    text = b"nr_free_pages 7\nnr_isolated_anon 2\nnr_isolated_file 3\nballoon_inflate 100\nballoon_deflate 40\n"
    found = parse_vmstat(text)
    assert (found.isolated_pages, found.balloon_pages, found.memmap_pages, found.zsmalloc_pages) == (5, 60, 0, 0)


def test_a_negative_vmstat_counter_is_zero() -> None:
    assert parse_vmstat(b"nr_free_pages 7\nnr_isolated_anon -2\nnr_isolated_file 3\n").isolated_pages == 3


def test_zoneinfo_has_every_cpu_of_every_zone() -> None:
    text = (
        b"Node 0, zone   Normal\n  pages free     5\n  pagesets\n    cpu: 0\n              count: 12\n"
        b"              high:  9\n    cpu: 1\n              count: 30\nNode 1, zone  Movable\n  pages free     0\n"
    )
    assert parse_zoneinfo(text) == [ZoneFreeLists(0, "Normal", (12, 30)), ZoneFreeLists(1, "Movable", ())]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (b"Node 0, zone Normal\n  count: many\n", "zoneinfo:2: "),
        (b"  count: 3\n", "zoneinfo:1: "),
        (b"Node zero\n", "zoneinfo:1: "),
        (b"", "zoneinfo: "),
    ],
)
def test_a_malformed_zoneinfo_is_rejected(text: bytes, place: str) -> None:
    with pytest.raises(ProcFormatError, match=f"^{place}"):
        parse_zoneinfo(text)


def test_vmallocinfo_counts_only_what_vmalloc_allocated() -> None:
    text = (
        b"0x0-0x0   20480 irq_init_percpu_irqstack+0xed/0x120 vmap\n"
        b"0x0-0x0    8192 acpi_os_map_iomem+0x1bc/0x1e0 phys=0x0 ioremap\n"
        b"0x0-0x0   32768 i_am_vmapped+0x1/0x2 pages=7 vmap\n"
        b"0x0-0x0   20480 n_tty_open+0x14/0xa0 pages=3 vmalloc N0=3\n"
        b"0x0-0x0   20480  unpurged vm_area\n"
    )
    assert parse_vmallocinfo(text) == VmallocInfo(3, has_stacks=False)
    stack = b"0x0-0x0   20480 dup_task_struct.isra.0+0x1/0x2 pages=4 vmalloc vpages N0=4\n"
    assert parse_vmallocinfo(text + stack) == VmallocInfo(7, has_stacks=True)


@pytest.mark.parametrize(("text", "cpus"), [(b"0\n", 1), (b"0-3\n", 4), (b"0-1,4,8-15\n", 11)])
def test_cpu_lists(text: bytes, cpus: int) -> None:
    assert parse_cpu_count(text) == cpus


@pytest.mark.parametrize("text", [b"", b"\n", b"3-1\n", b"0-\n", b"a\n"])
def test_a_malformed_cpu_list_is_rejected(text: bytes) -> None:
    with pytest.raises(ProcFormatError, match=r"^cpulist:1: expected a list of CPUs"):
        parse_cpu_count(text)
