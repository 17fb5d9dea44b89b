"""One reading of every counter that a breakdown needs."""

import time
from dataclasses import dataclass
from pathlib import Path

from memdiag_node.breakdown.surroundings import Surroundings, read_kernel_log, read_surroundings
from memdiag_node.procfs.meminfo import MemInfo, parse_meminfo
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.vmallocinfo import VmallocInfo, parse_vmallocinfo
from memdiag_node.procfs.vmstat import VmStat, parse_vmstat
from memdiag_node.procfs.zoneinfo import parse_zoneinfo

READINGS = 9
READING_GAP_SECONDS = 0.01
# If free pages are reported to a hypervisor, which takes up to half a second of every two (measured).
REPORTED_READING_GAP_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """All counters, read within about a millisecond. The kernel has no way to read them at one moment."""

    meminfo: MemInfo
    vmstat: VmStat
    per_cpu_list_bytes: int
    """Free pages on per-CPU lists."""
    vmalloc_bytes: int
    """From meminfo, or added up from /proc/vmallocinfo on kernels whose meminfo does not have it."""
    surroundings: Surroundings


def take_readings(roots: HostRoots, *, count: int = READINGS, gap_seconds: float | None = None) -> list[MemoryReading]:
    """Read the counters `count` times with pauses, to choose a typical reading (breakdown.classes).

    Without `gap_seconds` the pause depends on the machine, so that some readings are not taken while free pages are
    being reported.

    Raises OSError if a required file is missing (see preflight.counters), ProcFormatError if one is malformed.
    """
    surroundings = read_surroundings(roots, kernel_log=read_kernel_log())
    may_fold = not surroundings.undisturbed_cpus
    if gap_seconds is None:
        gap_seconds = REPORTED_READING_GAP_SECONDS if surroundings.free_pages_reported else READING_GAP_SECONDS
    readings = []
    for index in range(count):
        if index:
            time.sleep(gap_seconds)
        if may_fold:
            fold_per_cpu_counts(roots)
        readings.append(take_reading(roots, surroundings))
    return readings


def take_reading(roots: HostRoots, surroundings: Surroundings) -> MemoryReading:
    """Read the counters once."""
    proc = roots.proc
    # Free pages move between MemFree and the per-CPU lists: read the two directly after each other.
    meminfo_text, zoneinfo_text = (proc / "meminfo").read_bytes(), (proc / "zoneinfo").read_bytes()
    meminfo = parse_meminfo(meminfo_text, source=str(proc / "meminfo"))
    zones = parse_zoneinfo(zoneinfo_text, source=str(proc / "zoneinfo"))
    vmalloc_bytes = meminfo.vmalloc_bytes
    if not vmalloc_bytes and (vmalloc := _read_vmallocinfo(proc)):
        vmalloc_bytes = vmalloc.vmalloc_pages * surroundings.page_size_bytes
    return MemoryReading(
        meminfo=meminfo,
        vmstat=parse_vmstat((proc / "vmstat").read_bytes(), source=str(proc / "vmstat")),
        per_cpu_list_bytes=sum(sum(zone.per_cpu_pages) for zone in zones) * surroundings.page_size_bytes,
        vmalloc_bytes=vmalloc_bytes,
        surroundings=surroundings,
    )


def fold_per_cpu_counts(roots: HostRoots) -> bool:
    """Make the kernel add the counts of each CPU to the totals now (sysctl vm.stat_refresh).

    The kernel does this each second on most CPUs, but does not disturb isolated ones. This call does, and waits for
    them (mm/vmstat.c, schedule_on_each_cpu), so it must not be used if there are any. Returns False if not permitted.
    """
    try:
        (roots.proc / "sys/vm/stat_refresh").read_bytes()
    except OSError:
        return False
    return True


def _read_vmallocinfo(proc: Path) -> VmallocInfo | None:
    """Return None if this process cannot read it (mode 0400)."""
    path = proc / "vmallocinfo"
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return parse_vmallocinfo(text, source=str(path))
