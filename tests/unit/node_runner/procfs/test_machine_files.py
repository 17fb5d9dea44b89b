"""Parsers of the files about the machine's memory."""

from pathlib import Path

import pytest

from memdiag_node.procfs.allocinfo import Site, parse_allocinfo
from memdiag_node.procfs.buddyinfo import free_pages_by_order, parse_buddyinfo
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.hugepages import HugePages, read_huge_pages
from memdiag_node.procfs.iomem import Areas, parse_iomem, parse_present_pages
from memdiag_node.procfs.machine_meminfo import MachineMemInfo, parse_machine_meminfo
from memdiag_node.procfs.machine_vmstat import MachineVmStat, parse_machine_vmstat
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.page_owner import OwnerStack, parse_page_owner_stacks
from memdiag_node.procfs.swaps import Swap, parse_swaps
from memdiag_node.procfs.vmallocinfo import CallerPages, pages_by_caller, parse_vmallocinfo
from memdiag_node.procfs.zram import Zram, parse_mm_stat, read_zram
from support import machine_files as files
from support.fixtures import RECORDED, RECORDED_IDS

every_machine = pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)


def write(root: Path, **texts: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (root / name).write_text(text)


def test_huge_pages_of_each_size_and_of_each_numa_node(tmp_path: Path) -> None:
    pools = tmp_path / "kernel/mm/hugepages"
    write(
        pools / "hugepages-1048576kB", nr_hugepages="0\n", free_hugepages="0\n", resv_hugepages="0\n",
        surplus_hugepages="0\n",
    )  # fmt: skip
    write(
        pools / "hugepages-2048kB", nr_hugepages="64\n", free_hugepages="60\n", resv_hugepages="3\n",
        surplus_hugepages="1\n",
    )  # fmt: skip
    write(
        tmp_path / "devices/system/node/node1/hugepages/hugepages-2048kB", nr_hugepages="40\n", free_hugepages="39\n",
        surplus_hugepages="0\n",
    )  # fmt: skip
    assert read_huge_pages(tmp_path) == [
        HugePages(2 << 20, None, 64, 60, 3, 1),
        HugePages(1 << 30, None, 0, 0, 0, 0),
        HugePages(2 << 20, 1, 40, 39, 0, 0),
    ]
    write(pools / "hugepages-2048kB", nr_hugepages="many\n")
    with pytest.raises(ProcFormatError, match="nr_hugepages"):
        read_huge_pages(tmp_path)


def test_a_kernel_without_huge_pages_has_no_pools(tmp_path: Path) -> None:
    assert read_huge_pages(tmp_path) == []


def test_zram_devices_that_have_a_size(tmp_path: Path) -> None:
    write(tmp_path / "block/zram0", disksize="1073741824\n", mm_stat=files.MM_STAT.decode())
    write(tmp_path / "block/zram1", disksize="0\n", mm_stat="0 0 0 0 0 0 0 0 0\n")
    write(tmp_path / "block/vda", size="9\n")
    assert read_zram(tmp_path) == [Zram("zram0", 1 << 30, 314572800, 314998784)]
    with pytest.raises(ProcFormatError, match="three numbers"):
        parse_mm_stat(b"1 2\n")


def test_swaps_with_their_sizes_in_bytes() -> None:
    assert parse_swaps(files.SWAPS) == [
        Swap("/dev/zram0", 4194300 * 1024, 1 << 30),
        Swap("/swap\\040file", 2097148 * 1024, 0),
    ]
    assert parse_swaps(files.SWAPS.splitlines()[0]) == []
    with pytest.raises(ProcFormatError):
        parse_swaps(b"heading\n/dev/x partition\n")


def test_free_pages_by_order_are_summed_over_zones() -> None:
    pages = free_pages_by_order(parse_buddyinfo(files.BUDDYINFO))
    assert len(pages) == 11
    assert (pages[0], pages[1], pages[10]) == (6145, 20979 * 2, (3 + 752 + 88) << 10)
    with pytest.raises(ProcFormatError):
        parse_buddyinfo(b"")


def test_sites_with_memory_and_their_modules() -> None:
    sites = parse_allocinfo(files.ALLOCINFO)
    assert sites[0] == Site("drivers/net/leaky/rx.c:88", "leaky", "leaky_rx_alloc", 419430400, 102400)
    assert [one.module for one in sites] == ["leaky", "", "", ""]
    assert parse_allocinfo(files.ALLOCINFO_2) == [Site("fs/xfs/xfs_super.c:70", "xfs", "xfs_init", 40960, 10)]
    with pytest.raises(ProcFormatError, match="version"):
        parse_allocinfo(b"# heading\n")
    with pytest.raises(ProcFormatError, match="func:NAME"):
        parse_allocinfo(files.ALLOCINFO + b"12 13 nonsense\n")


def test_stacks_of_page_owner() -> None:
    assert parse_page_owner_stacks(files.PAGE_OWNER) == [
        OwnerStack(
            ("get_page_from_freelist+0x7e6/0x2140", "__alloc_pages+0x18a/0x370", "leaky_rx_alloc+0x1c/0x80 [leaky]"),
            102400,
        ),
        OwnerStack(("get_page_from_freelist+0x7e6/0x2140", "pte_alloc_one+0x14/0x70"), 512),
    ]
    cut = files.PAGE_OWNER[: files.PAGE_OWNER.rfind(b"nr_base")]
    assert [one.pages for one in parse_page_owner_stacks(cut)] == [102400]
    assert parse_page_owner_stacks(b" a+0x1/0x2\nstack_count: 7\n")[0].pages == 7


def test_physical_memory_by_name() -> None:
    areas = parse_iomem(files.IOMEM)
    kernel_bytes = 0x22090C8 - 0x1000000 + 0x2E09000 - 0x2400000
    assert areas == Areas(0x9EC00 + 0xBFF00000 + 0x540000000, kernel_bytes, 0x10000000)
    hidden = b"00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n"
    assert parse_iomem(hidden) is None


def test_pages_of_devices_are_not_memory_of_the_machine() -> None:
    assert parse_present_pages(files.ZONES) == 3998 + 258016
    with pytest.raises(ProcFormatError, match="present"):
        parse_present_pages(b"Node 0, zone DMA\n")


@every_machine
def test_memory_that_exists_is_a_little_more_than_memory_in_total(machine: Path) -> None:
    present = parse_present_pages((machine / "proc/zoneinfo").read_bytes())
    meminfo = parse_meminfo((machine / "proc/meminfo").read_bytes())
    assert meminfo.mem_total_bytes < present * 4096 < 1.2 * meminfo.mem_total_bytes


def test_vmalloc_by_caller_without_stacks_and_mappings() -> None:
    assert pages_by_caller(files.VMALLOCINFO.splitlines()) == [
        CallerPages("leaky_open", "leaky", 102416, 2),
        CallerPages("array_map_alloc", "", 25600, 1),
    ]


@every_machine
def test_callers_and_stacks_are_all_of_vmalloc(machine: Path) -> None:
    lines = (machine / "proc/vmallocinfo").read_bytes().splitlines()
    by_caller = pages_by_caller(lines)
    all_pages = parse_vmallocinfo(b"\n".join(lines)).vmalloc_pages
    without_stacks = sum(one.pages for one in by_caller)
    assert 0 < without_stacks < all_pages
    assert all(one.function for one in by_caller)
    assert by_caller == sorted(by_caller, key=lambda one: -one.pages)


def test_fields_that_only_some_kernels_have() -> None:
    assert parse_machine_meminfo(files.MEMINFO_EXTRA) == MachineMemInfo(
        vmalloc_bytes=512 << 20,
        zswap_taken_bytes=100 << 20,
        zswap_stored_bytes=300 << 20,
        gpu_active_bytes=2 << 30,
        gpu_reclaimable_bytes=512 << 20,
        balloon_bytes=1 << 30,
    )
    assert parse_machine_meminfo(b"MemTotal: 1 kB\n").gpu_active_bytes is None
    assert parse_machine_vmstat(files.VMSTAT_EXTRA) == MachineVmStat(30, 20, 12, 4, 9, 500)
