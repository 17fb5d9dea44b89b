"""Events of /proc/vmstat that show how the kernel found memory (kernel: include/linux/vm_event_item.h)."""

import re
from dataclasses import dataclass

_LINE = re.compile(rb"([a-z0-9_]+) (-?\d{1,20})")


@dataclass(frozen=True, slots=True)
class MachineVmStat:
    """Counts since boot. A counter that this kernel does not have is 0."""

    compaction_stalls: int
    """Allocations that waited for compaction."""
    compaction_failures: int
    reclaim_stalls: int
    """Allocations that waited for reclaim, in all zones."""
    zswap_in_pages: int
    zswap_out_pages: int
    balloon_pages: int
    """Inflated and not deflated, by balloons with these counters (virtio, VMware)."""


def parse_machine_vmstat(text: bytes) -> MachineVmStat:
    """Parse the counters. Lines of another form are skipped: procfs.vmstat checks the file."""
    counts = {match[1]: int(match[2]) for line in text.splitlines() if (match := _LINE.fullmatch(line))}

    def count(name: bytes) -> int:
        return max(0, counts.get(name, 0))

    return MachineVmStat(
        compaction_stalls=count(b"compact_stall"),
        compaction_failures=count(b"compact_fail"),
        reclaim_stalls=sum(max(0, value) for name, value in counts.items() if name.startswith(b"allocstall")),
        zswap_in_pages=count(b"zswpin"),
        zswap_out_pages=count(b"zswpout"),
        balloon_pages=max(0, count(b"balloon_inflate") - count(b"balloon_deflate")),
    )
