"""The kernel's own accounts of who allocated, in the report."""

from memdiag_api import limits
from memdiag_api.machine import AllocationSite, AllocationSites, Machine, PageOwnerStack, VmallocCaller, VmallocCallers
from memdiag_node.render.allocators import allocators_parts
from memdiag_node.render.text import WIDTH
from support.report_records import MIB, machine

LONG = "f" * limits.MAX_SHORT_TEXT


def lines(found: Machine) -> list[str]:
    return [line for part in allocators_parts(found) for line in part]


def test_a_kernel_without_such_accounts_has_no_section() -> None:
    assert lines(Machine()) == []


def test_small_callers_have_no_section_of_their_own() -> None:
    small = VmallocCaller(function="small", size_bytes=MIB - 1, areas=1)
    assert lines(Machine(vmalloc=VmallocCallers(callers=[small], callers_total=1, read_bytes=MIB - 1))) == []


def test_a_caller_has_its_size_change_and_module() -> None:
    rows = [line.split() for line in lines(machine())]
    assert ["215", "MiB", "+8.00", "MiB", "27", "array_map_alloc"] in rows
    assert ["64.0", "MiB", "+0", "B", "1,200", "nv_alloc", "[nvidia]"] in rows
    assert ["700", "MiB", "-", "179,200", "-", "ring_fill", "[vendor_net]", "drivers/net/ring.c:88"] in rows
    assert ["700", "MiB", "__alloc_pages", "<", "ring_fill", "<", "ring_poll", "<", "net_rx_action"] in rows


def test_a_reading_that_ended_early_is_reported() -> None:
    vmalloc = machine().vmalloc
    assert vmalloc
    note = "  Not all areas were read: a limit of lines or of time ended it."
    assert note not in lines(machine())
    cut_short = vmalloc.model_copy(update={"is_complete": False})
    assert note in lines(machine().model_copy(update={"vmalloc": cut_short}))


def test_the_sections_are_short_and_narrow_even_if_every_list_is_full() -> None:
    caller = VmallocCaller(function=LONG, module=LONG[:253], size_bytes=2**62, areas=2**62, change_bytes=-(2**62))
    site = AllocationSite(place=LONG, function=LONG, size_bytes=2**62, calls=2**62, change_bytes=2**62)
    stack = PageOwnerStack(frames=[LONG] * limits.MAX_PAGE_OWNER_FRAMES, size_bytes=2**62)
    found = lines(
        Machine(
            vmalloc=VmallocCallers(
                callers=[caller] * limits.MAX_VMALLOC_CALLERS, callers_total=9000, read_bytes=2**62, is_complete=False
            ),
            allocation_sites=AllocationSites(sites=[site] * limits.MAX_ALLOCATION_SITES, sites_total=9000),
            page_owner=[stack] * limits.MAX_PAGE_OWNER_STACKS,
        )
    )
    assert len(found) <= 90
    assert max(map(len, found)) <= WIDTH
    assert "  and 8,992 more functions" in found
    assert "  and 8,992 more source lines" in found
