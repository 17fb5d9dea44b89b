"""Rules: memory that the hypervisor took back, and memory that was reserved at boot (docs/machine.md)."""

from collections.abc import Iterator

from memdiag_api.findings import Confidence, FindingKind, LeakAnswer
from memdiag_api.machine import ReservedAtBoot
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.situation import Situation

_USUAL_KERNEL_BYTES = 128 << 20
"""More than the code and data of a kernel, for a machine that does not show them."""
_NOTABLE_SHARE = 0.08
"""Of the machine's memory. Firmware, device trees and the tables of boot take less on healthy machines."""


def balloon(situation: Situation) -> Iterator[Draft]:
    """Yield a finding if the hypervisor took back the notable size."""
    machine = situation.measured.machine
    found = machine.balloon if machine else None
    if found is None or found.size_bytes < situation.notable_bytes:
        return
    size = format_bytes(found.size_bytes)
    place = (
        "it is still part of MemTotal" if found.is_part_of_total else "it is not part of MemTotal, which became smaller"
    )
    reasons = [place, f"the threshold for a balloon is {format_bytes(situation.notable_bytes)}"]
    if found.target_bytes is not None and found.current_bytes is not None:
        reasons.append(
            f"the machine has {format_bytes(found.current_bytes)}, and the hypervisor wants it to have "
            f"{format_bytes(found.target_bytes)}"
        )
    yield Draft(
        kind=FindingKind.BALLOON,
        memory_class=ClassName.BALLOON if found.is_part_of_total else "",
        size_bytes=found.size_bytes,
        owner=MemoryOwner(kind=OwnerKind.DEVICE, name=found.driver),
        leak=LeakAnswer.NO,
        sentence=f"The hypervisor took {size} back through {found.driver}.",
        reasons=reasons,
        advice="Ask the operator of the hypervisor: only the host can give this memory back.",
        sections=["machine.balloon"],
        is_notable=True,
    )


def reserved_memory(situation: Situation) -> Iterator[Draft]:
    """Yield a finding about memory that was reserved at boot beyond what every kernel needs.

    It is notable above 8 % of the machine's memory. It is outside of MemTotal, so it is part of no class.
    """
    machine = situation.measured.machine
    reserved = machine.reserved if machine else None
    if reserved is None:
        return
    extra_bytes = unusual_bytes(reserved)
    if extra_bytes < situation.notable_bytes:
        return
    crash = format_bytes(reserved.crash_kernel_bytes)
    yield Draft(
        kind=FindingKind.RESERVED_MEMORY,
        size_bytes=extra_bytes,
        claims_bytes={},
        owner=MemoryOwner(kind=OwnerKind.KERNEL, name="reserved at boot"),
        leak=LeakAnswer.NO,
        confidence=Confidence.HIGH if reserved.kernel_bytes is not None else Confidence.MEDIUM,
        sentence=f"{format_bytes(extra_bytes)} of the machine's {format_bytes(reserved.ram_bytes)} were reserved at "
        "boot, besides the kernel itself: no process can use them.",
        reasons=[
            f"{format_bytes(reserved.reserved_bytes)} of the machine's memory are not in MemTotal; "
            f"{format_bytes(reserved.memory_map_bytes)} of them describe the pages",
            f"it is notable above {_NOTABLE_SHARE:.0%} of the machine's memory",
            *([f"{crash} are kept for a crash kernel"] if reserved.crash_kernel_bytes else []),
        ],
        advice="Check crashkernel=, mem=, memmap= and hugepages= on the kernel's command line, and the firmware's "
        "settings for graphics memory.",
        sections=["machine.reserved"],
        is_notable=extra_bytes > _NOTABLE_SHARE * reserved.ram_bytes,
    )


def unusual_bytes(reserved: ReservedAtBoot) -> int:
    """Return the reserved memory beyond the kernel's code and data and its description of each page."""
    kernel_bytes = _USUAL_KERNEL_BYTES if reserved.kernel_bytes is None else reserved.kernel_bytes
    return max(0, reserved.reserved_bytes - reserved.memory_map_bytes - kernel_bytes)
