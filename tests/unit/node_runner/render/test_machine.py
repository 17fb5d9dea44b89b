"""The machine's memory in the report: a line for what a machine has, none for what it lacks, and never too many."""

from typing import Any

import pytest

from memdiag_api import limits
from memdiag_api.machine import (
    BalloonMemory,
    CompressedDevice,
    CompressedSwap,
    FreeBlocks,
    GpuMemory,
    HugePagePool,
    Machine,
    ReservedAtBoot,
    SwapUse,
)
from memdiag_node.render.machine import machine_lines
from memdiag_node.render.text import WIDTH
from support.report_records import GIB, MIB, machine

BALLOON = BalloonMemory(driver="xen_balloon", size_bytes=0, is_part_of_total=False)
POOL = HugePagePool(page_size_bytes=GIB, pages=4, free_pages=1, numa_node=1)
RESERVED = ReservedAtBoot(ram_bytes=8 * GIB, reserved_bytes=200 * MIB, memory_map_bytes=128 * MIB)


def lines(**parts: Any) -> list[str]:
    return machine_lines(Machine(**parts), page_bytes=4096)


def test_a_machine_with_nothing_special_has_no_section() -> None:
    assert lines() == []


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"huge_pages": [POOL]}, "huge pages of 1.00 GiB on NUMA node 1: 4.00 GiB in 4 pages, 1 free (1.00 GiB)"),
        (
            {"compressed_swap": CompressedSwap(stored_bytes=6 * MIB, taken_bytes=2 * MIB, memory_class="Zsmalloc")},
            "zswap: 2.00 MiB of memory for 6.00 MiB of data, ratio 3.0",
        ),
        (
            {"balloon": BALLOON.model_copy(update={"current_bytes": 8 * GIB, "target_bytes": 6 * GIB})},
            "balloon (xen_balloon): 0 B taken back by the hypervisor, not part of MemTotal; the machine has 8.00 GiB, "
            "the hypervisor wants 6.00 GiB",
        ),
        (
            {"reserved": RESERVED},
            "reserved at boot: 200 MiB of 8.00 GiB, not part of MemTotal: memory map 128 MiB, other, with the kernel "
            "72.0 MiB",
        ),
        (
            {"free_blocks": FreeBlocks(bytes_by_order=[3 * MIB, 0, 0, MIB])},
            "free blocks: 4.00 MiB, 25.0 % of it in blocks of 32.0 KiB or more: order 0 3.00 MiB, order 1 0 B, "
            "order 2 0 B, order 3 1.00 MiB",
        ),
        ({"not_read": ["zram: cannot\nbe read"]}, "not read: zram: cannot be read"),
    ],
)
def test_a_part_has_its_figures(parts: dict[str, Any], expected: str) -> None:
    heading, *rest = lines(**parts)
    assert heading.startswith("THE MACHINE   ")
    assert " ".join(" ".join(rest).split()) == expected


@pytest.mark.parametrize(
    "parts",
    [
        {"balloon": BALLOON},
        {"balloon": BALLOON.model_copy(update={"current_bytes": GIB, "target_bytes": GIB})},
        {"gpu": GpuMemory(active_bytes=0, reclaimable_bytes=0)},
        {"free_blocks": FreeBlocks(bytes_by_order=[0, 0], compaction_stalls=0, compaction_failures=None)},
    ],
)
def test_what_is_empty_has_no_line(parts: dict[str, Any]) -> None:
    assert lines(**parts) == []


def test_a_size_and_its_order_are_on_one_line() -> None:
    free = [line for line in machine_lines(machine(), page_bytes=4096) if "order" in line]
    assert len(free) > 1
    assert not [line for line in free if not line.rstrip(",").endswith("B")]


def test_the_section_is_short_and_narrow_even_if_every_list_is_full() -> None:
    device = CompressedDevice(name="z" * 253, disk_bytes=1, stored_bytes=1, taken_bytes=2**62, use=SwapUse.UNKNOWN)
    full = machine().model_copy(
        update={
            "huge_pages": [POOL.model_copy(update={"pages": 2**62, "free_pages": 2**62})] * limits.MAX_HUGE_PAGE_POOLS,
            "compressed_devices": [device] * limits.MAX_COMPRESSED_DEVICES,
            "balloon": BALLOON.model_copy(update={"driver": "b" * 253, "size_bytes": 2**62}),
            "not_read": ["why " * 256] * limits.MAX_NOT_SEEN,
        }
    )
    found = machine_lines(full, page_bytes=4096)
    assert len(found) <= 60
    assert max(map(len, found)) <= WIDTH
    assert "  24 more pools of huge pages" in found
    assert "  4 more zram devices" in found
    assert "  12 more parts could not be read" in found
