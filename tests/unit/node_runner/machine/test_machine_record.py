"""Reading the machine's memory from files, and what the record makes of two readings."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from memdiag_api.machine import Machine, SwapUse
from memdiag_api.memory_classes import ClassName
from memdiag_node.machine.reading import MachineReading, ReadBalloon, read_balloon, read_machine, read_vmalloc
from memdiag_node.machine.record import machine_record
from memdiag_node.machine.site_classes import site_class
from memdiag_node.procfs.buddyinfo import parse_buddyinfo
from memdiag_node.procfs.machine_meminfo import parse_machine_meminfo
from memdiag_node.procfs.machine_vmstat import parse_machine_vmstat
from memdiag_node.procfs.roots import HostRoots
from support import machine_files as files
from support.fixtures import RECORDED, RECORDED_IDS, roots_of

MIB = 1 << 20
GIB = 1 << 30
PROC: Mapping[str, bytes] = {
    "meminfo": files.MEMINFO_EXTRA,
    "vmstat": files.VMSTAT_EXTRA,
    "vmallocinfo": files.VMALLOCINFO,
    "allocinfo": files.ALLOCINFO,
    "swaps": files.SWAPS,
    "zoneinfo": files.ZONES,
    "iomem": files.IOMEM,
    "buddyinfo": files.BUDDYINFO,
    "1/mountinfo": b"1 0 0:1 / / rw shared:1 - ext4 /dev/vda rw\n2 1 0:2 / /mnt rw - ext2 /dev/zram1 rw\n",
}
SYS: Mapping[str, bytes] = {
    "block/zram0/disksize": b"4294967296\n",
    "block/zram0/mm_stat": files.MM_STAT,
    "block/zram1/disksize": b"4294967296\n",
    "block/zram1/mm_stat": b"4096 74 12288 0 12288 0 0 0 0\n",
    "block/zram2/disksize": b"4294967296\n",
    "block/zram2/mm_stat": b"4096 74 8192 0 12288 0 0 0 0\n",
    "firmware/memmap/0/start": b"0x0\n",
    "firmware/memmap/0/end": b"0x5fffffff\n",
    "firmware/memmap/0/type": b"System RAM\n",
    "firmware/memmap/1/start": b"0x60000000\n",
    "firmware/memmap/1/end": b"0x6fffffff\n",
    "firmware/memmap/1/type": b"Reserved\n",
    "kernel/kexec_crash_size": b"268435456\n",
    "kernel/debug/page_owner_stacks/show_stacks": files.PAGE_OWNER,
    "bus/virtio/drivers/virtio_balloon/virtio0/features": b"0" * 64,
    "module/zswap/parameters/zpool": b"zbud\n",
}


def machine_with(root: Path, **changes: bytes | None) -> HostRoots:
    """The files of a machine. A change of `a__b` is of the file a/b of /proc; None removes it."""
    proc = {**PROC, **{name.replace("__", "/"): text for name, text in changes.items()}}
    for folder, texts in (("proc", proc), ("sys", SYS)):
        for name, text in texts.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(text)
    return HostRoots(proc=root / "proc", sys=root / "sys")


def record(last: MachineReading, first: MachineReading | None = None) -> Machine:
    return machine_record(last, first, page_bytes=4096, mem_total_bytes=GIB)


def test_everything_that_a_machine_has_is_in_the_record(tmp_path: Path) -> None:
    roots = machine_with(tmp_path)
    machine = record(read_machine(roots, vmalloc_bytes=MIB, is_last=True))
    assert machine.not_read == []
    assert [(one.name, one.use) for one in machine.compressed_devices] == [
        ("zram0", SwapUse.SWAP),
        ("zram1", SwapUse.FILE_SYSTEM),
        ("zram2", SwapUse.UNKNOWN),
    ]
    assert machine.compressed_swap
    assert (machine.compressed_swap.taken_bytes, machine.compressed_swap.memory_class) == (100 * MIB, "AllocPage")
    assert machine.balloon
    assert (machine.balloon.driver, machine.balloon.size_bytes) == ("virtio_balloon", GIB)
    assert not machine.balloon.is_part_of_total
    assert machine.reserved
    assert machine.reserved.ram_bytes == 0x60000000  # more than the zones have: of the firmware
    assert machine.reserved.reserved_bytes == 0  # the balloon has it
    assert machine.reserved.crash_kernel_bytes == 256 * MIB
    assert machine.vmalloc
    assert [(one.function, one.module, one.areas) for one in machine.vmalloc.callers] == [
        ("leaky_open", "leaky", 2),
        ("array_map_alloc", "", 1),
    ]
    assert machine.allocation_sites
    assert [one.memory_class for one in machine.allocation_sites.sites] == ["", "Slab", "FileCache", "KernelStack"]
    assert [one.size_bytes for one in machine.page_owner] == [400 * MIB, 2 * MIB]
    assert machine.gpu
    assert machine.free_blocks
    assert machine.free_blocks.compaction_stalls is None
    assert Machine.model_validate_json(machine.model_dump_json(by_alias=True)) == machine


def test_changes_are_between_the_two_readings(tmp_path: Path) -> None:
    before = machine_with(tmp_path)
    first = read_machine(before, vmalloc_bytes=MIB, is_last=False)
    assert first.huge_pages is None
    after = machine_with(
        tmp_path,
        vmstat=files.VMSTAT_EXTRA.replace(b"compact_stall 30", b"compact_stall 37").replace(
            b"zswpout 9", b"zswpout 19"
        ),
        vmallocinfo=files.VMALLOCINFO.replace(b"pages=102400", b"pages=102656"),
        allocinfo=files.ALLOCINFO.replace(b"419430400", b"420478976"),
    )
    machine = record(read_machine(after, vmalloc_bytes=MIB, is_last=True), first)
    assert machine.free_blocks
    assert machine.free_blocks.compaction_stalls == 7
    assert machine.compressed_swap
    assert machine.compressed_swap.out_pages == 10
    assert machine.vmalloc
    assert [one.change_bytes for one in machine.vmalloc.callers] == [MIB, 0]
    assert machine.allocation_sites
    assert machine.allocation_sites.sites[0].change_bytes == MIB


def test_little_vmalloc_is_not_read(tmp_path: Path) -> None:
    roots = machine_with(tmp_path)
    assert read_machine(roots, vmalloc_bytes=512 * MIB, is_last=True).vmalloc
    assert read_machine(roots, vmalloc_bytes=512 * MIB + 1, is_last=True).vmalloc is None


def test_a_damaged_file_costs_only_its_part(tmp_path: Path) -> None:
    roots = machine_with(tmp_path, swaps=b"heading\n???\n", iomem=b"???\n", zoneinfo=b"")
    machine = record(read_machine(roots, vmalloc_bytes=MIB, is_last=True))
    assert [one.split(":")[0] for one in machine.not_read] == ["swaps", "zones", "iomem"]
    assert machine.reserved is None
    assert machine.vmalloc


def test_files_that_do_not_exist_are_not_errors(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    roots = HostRoots(proc=tmp_path / "proc", sys=tmp_path / "sys")
    assert record(read_machine(roots, vmalloc_bytes=0, is_last=True)) == Machine()


def test_a_limit_of_areas_or_of_time_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "vmallocinfo"
    path.write_bytes(files.VMALLOCINFO)
    assert read_vmalloc(path).is_complete
    cut = read_vmalloc(path, max_areas=2)
    assert not cut.is_complete
    assert [one.pages for one in cut.callers] == [102400]
    assert not read_vmalloc(path, max_seconds=-1).is_complete
    incomplete = MachineReading(vmalloc=cut)
    machine = record(incomplete, incomplete)
    assert machine.vmalloc
    assert [one.change_bytes for one in machine.vmalloc.callers] == [None]


@pytest.mark.parametrize(
    ("device", "driver"),
    [
        ("bus/vmbus/drivers/hv_balloon/1-2-3", "hv_balloon"),
        ("module/vmw_balloon", "vmw_balloon"),
        ("devices/system/xen_memory/xen_memory0/info", "xen_balloon"),
    ],
)
def test_each_balloon_driver_is_named(tmp_path: Path, device: str, driver: str) -> None:
    folder = tmp_path / device
    folder.mkdir(parents=True)
    (folder / "current_kb").write_text("2048\n")
    found = read_balloon(tmp_path)
    assert found
    assert found.driver == driver
    assert found.is_part_of_total is (driver == "vmw_balloon")
    assert found.current_bytes == (2 * MIB if driver == "xen_balloon" else None)


def test_the_size_of_a_balloon_is_from_its_events_where_meminfo_has_none() -> None:
    reading = MachineReading(
        meminfo=parse_machine_meminfo(b"VmallocUsed: 1 kB\n"),
        vmstat=parse_machine_vmstat(files.VMSTAT_EXTRA),
        balloon=ReadBalloon("virtio_balloon", is_part_of_total=False),
        present_pages=(2 * GIB) // 4096,
    )
    machine = record(reading)
    assert machine.balloon
    assert machine.balloon.size_bytes == 500 * 4096
    assert machine.reserved
    assert machine.reserved.reserved_bytes == GIB - 500 * 4096
    assert machine.reserved.memory_map_bytes == 32 * MIB


def test_free_blocks_are_in_bytes() -> None:
    machine = record(MachineReading(free_blocks=parse_buddyinfo(files.BUDDYINFO)))
    assert machine.free_blocks
    assert machine.free_blocks.bytes_by_order[10] == 843 * 4 * MIB


@pytest.mark.parametrize(
    ("place", "function", "expected"),
    [
        ("mm/slub.c:3062", "alloc_slab_page", ClassName.SLAB),
        ("kernel/fork.c:311", "alloc_thread_stack_node", ClassName.KERNEL_STACK),
        ("kernel/fork.c:900", "dup_fd", ""),
        ("arch/x86/mm/pgtable.c:24", "pte_alloc_one", ClassName.PAGE_TABLES),
        ("./include/asm-generic/pgalloc.h:63", "pte_alloc_one", ClassName.PAGE_TABLES),
        ("drivers/net/leaky/rx.c:88", "leaky_rx_alloc", ""),
    ],
)
def test_the_class_of_a_site_is_known_by_its_file_only(place: str, function: str, expected: str) -> None:
    assert site_class(place, function) == expected


@pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)
def test_recorded_machines_have_a_record(machine: Path) -> None:
    reading = read_machine(roots_of(machine), vmalloc_bytes=0, is_last=True)
    found = machine_record(reading, reading, page_bytes=4096, mem_total_bytes=GIB)
    assert found.not_read == []
    assert found.vmalloc
    assert all(one.change_bytes == 0 for one in found.vmalloc.callers)
