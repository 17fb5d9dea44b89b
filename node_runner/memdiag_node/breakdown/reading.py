"""One reading of every counter that a breakdown needs, and what has to be there for it."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.host import HostRoots
from memdiag_node.procfs.balloon import balloon_stays_in_total, free_pages_are_reported
from memdiag_node.procfs.cpulist import parse_cpu_count, parse_undisturbed_cpu_count
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kernel_log import parse_first_chunk_pages_per_cpu, read_kernel_log
from memdiag_node.procfs.meminfo import MemInfo, parse_meminfo
from memdiag_node.procfs.vmallocinfo import VmallocInfo, has_stack, parse_vmallocinfo
from memdiag_node.procfs.vmstat import VmStat, parse_vmstat
from memdiag_node.procfs.zoneinfo import parse_zoneinfo

READINGS = 9
READING_GAP_SECONDS = 0.01
# Where free pages are reported to a hypervisor, which takes up to half a second of every two (measured).
REPORTED_READING_GAP_SECONDS = 0.1

# What x86-64 and arm64 kernels of the large distributions print, when the boot log no longer tells: 48 to 96 pages.
_USUAL_FIRST_CHUNK_PAGES_PER_CPU = 72
_USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU = 24
# mm/vmstat.c, calculate_normal_threshold: what a CPU keeps of a counter before it adds it to the sum, at most.
_FOLD_THRESHOLD_PAGES = 125
# Counters of the AllocPage formula that are kept so: free, five LRU lists, two of isolated pages, two of slab, two of
# page tables, zsmalloc.
_COUNTERS = 13
_MAX_AREAS = 10_000  # of vmalloc: a kernel that takes stacks from there has shown one by then


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What does not change while the machine runs, or hardly: read once for many readings."""

    page_size_bytes: int
    huge_page_bytes: int
    """Size of a transparent huge page; 0 where the kernel has none."""
    first_chunk_bytes: int
    """Part of `Percpu` that lies outside MemTotal."""
    first_chunk_error_bytes: int
    stacks_in_vmalloc: bool
    balloon_in_total: bool
    free_pages_reported: bool = False
    """Free pages are on no free list for a moment while they are reported to the hypervisor."""
    undisturbed_cpus: int = 0
    """CPUs that are isolated or without a tick: nothing may make work for them."""

    @property
    def unfolded_error_bytes(self) -> int:
        """What the counts that such CPUs keep to themselves make of the sum, with 95 % probability.

        Each of them keeps up to _FOLD_THRESHOLD_PAGES of each counter, more or less, evenly distributed.
        """
        counts = self.undisturbed_cpus * _COUNTERS
        return round(2 * _FOLD_THRESHOLD_PAGES * math.sqrt(counts / 3)) * self.page_size_bytes


@dataclass(frozen=True, slots=True)
class MemoryReading:
    """Every counter, read within about a millisecond. The kernel gives no common moment to all of them."""

    meminfo: MemInfo
    vmstat: VmStat
    per_cpu_list_bytes: int
    """Free pages on per-CPU lists."""
    vmalloc_bytes: int
    """As meminfo has it; added up from /proc/vmallocinfo on kernels whose meminfo does not."""
    surroundings: Surroundings


def take_readings(roots: HostRoots, *, count: int = READINGS, gap_seconds: float | None = None) -> list[MemoryReading]:
    """Read the counters `count` times with a pause between, for a typical one of them (analyze.breakdown).

    Without `gap_seconds` the pause follows from the machine, so that some readings are outside of the moment in which
    free pages are being reported.

    Raises OSError when a file that is always needed is missing (see `needs`), ProcFormatError when one is malformed.
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
    # Free pages wander between MemFree and the per-CPU lists: read the two right after each other.
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


def read_surroundings(roots: HostRoots, *, kernel_log: bytes | None) -> Surroundings:
    """Read what stays as it is. `kernel_log` is None when it may not be read."""
    page_size_bytes = os.sysconf("SC_PAGE_SIZE")
    possible = roots.sys / "devices/system/cpu/possible"
    cpus = parse_cpu_count(possible.read_bytes(), source=str(possible))
    told = parse_first_chunk_pages_per_cpu(kernel_log or b"")
    return Surroundings(
        page_size_bytes=page_size_bytes,
        huge_page_bytes=_read_huge_page_bytes(roots.sys / "kernel/mm/transparent_hugepage/hpage_pmd_size"),
        first_chunk_bytes=(told or _USUAL_FIRST_CHUNK_PAGES_PER_CPU) * cpus * page_size_bytes,
        first_chunk_error_bytes=0 if told else _USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU * cpus * page_size_bytes,
        stacks_in_vmalloc=_stacks_are_in_vmalloc(roots),
        balloon_in_total=balloon_stays_in_total(roots.sys),
        free_pages_reported=free_pages_are_reported(roots.sys),
        undisturbed_cpus=_undisturbed_cpu_count(roots),
    )


def fold_per_cpu_counts(roots: HostRoots) -> bool:
    """Have the kernel add each CPU's counts to the sums now (sysctl vm.stat_refresh).

    The kernel does so each second on most CPUs, but it does not disturb isolated ones: this does, and it waits for them
    (mm/vmstat.c, schedule_on_each_cpu). Never to be called where there are any. False when it may not be asked for.
    """
    try:
        (roots.proc / "sys/vm/stat_refresh").read_bytes()
    except OSError:
        return False
    return True


def needs(roots: HostRoots) -> list[Need]:
    """What the breakdown needs from the host, found out by trying."""
    return [*_file_needs(roots), *_vmallocinfo_need(roots), _kernel_log_need(), _stat_refresh_need(roots)]


def _file_needs(roots: HostRoots) -> Iterator[Need]:
    for path in (
        roots.proc / "meminfo",
        roots.proc / "zoneinfo",
        roots.proc / "vmstat",
        roots.sys / "devices/system/cpu/possible",
    ):
        problem = _why_unreadable(path)
        yield _need(
            str(path),
            NeedState.MISSING if problem else NeedState.MET,
            detail=f"{problem}: no breakdown is possible" if problem else "",
            remedy="give the runner the host's own /proc and /sys, not a container runtime's imitation"
            if problem
            else "",
        )


def _vmallocinfo_need(roots: HostRoots) -> Iterator[Need]:
    """None where it is not read: BTF tells where stacks are, and meminfo sums up vmalloc."""
    if _has_stack_areas_by_btf(roots) is not None and _sums_up_vmalloc(roots):
        return
    path = roots.proc / "vmallocinfo"
    problem = _why_unreadable(path)
    if problem is None:
        yield _need(str(path), NeedState.MET)
        return
    yield _need(
        str(path),
        NeedState.DEGRADED,
        detail=f"{problem}: kernel stacks are taken to be part of vmalloc; a kernel whose meminfo has VmallocUsed 0 "
        "(before 5.3) shows its vmalloc memory as AllocPage",
        remedy="run as root",
    )


def _kernel_log_need() -> Need:
    log = read_kernel_log()
    if log is not None and parse_first_chunk_pages_per_cpu(log) is not None:
        return _need("kernel log", NeedState.MET)
    reason = "may not be read" if log is None else "no longer goes back to the boot"
    error_kib = _USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU * os.sysconf("SC_PAGE_SIZE") // 1024
    return _need(
        "kernel log",
        NeedState.DEGRADED,
        detail=f"it {reason}: how much per-CPU memory was set aside at boot is estimated, to {error_kib} KiB per CPU",
        remedy="run as root, or with the capability SYSLOG" if log is None else "none is needed: the error is small",
    )


def _stat_refresh_need(roots: HostRoots) -> Need:
    path = roots.proc / "sys/vm/stat_refresh"
    if undisturbed := _undisturbed_cpu_count(roots):
        return _need(
            str(path),
            NeedState.DEGRADED,
            detail=f"it is not used: {undisturbed} CPUs are isolated or have no tick (nohz_full), and it would wait "
            "for them; counts that they keep to themselves are part of AllocPage's error",
            remedy="none is needed",
        )
    if fold_per_cpu_counts(roots):
        return _need(str(path), NeedState.MET)
    return _need(
        str(path),
        NeedState.DEGRADED,
        detail="it may not be read: counters may be a second old, so AllocPage's error grows while the node is busy",
        remedy="run as root",
    )


def _need(name: str, state: NeedState, *, detail: str = "", remedy: str = "") -> Need:
    return Need(name=name, state=state, checks=[Check.BREAKDOWN], detail=detail, remedy=remedy)


def _why_unreadable(path: Path) -> str | None:
    """Why `path` cannot be read, in the kernel's words; None when it can."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _read_vmallocinfo(proc: Path) -> VmallocInfo | None:
    """None when this process may not read it (mode 0400)."""
    path = proc / "vmallocinfo"
    try:
        text = path.read_bytes()
    except OSError:
        return None
    return parse_vmallocinfo(text, source=str(path))


def _stacks_are_in_vmalloc(roots: HostRoots) -> bool:
    """Whether kernel stacks come from vmalloc (CONFIG_VMAP_STACK).

    /proc/vmallocinfo shows it too, but reading it holds up vmalloc, and it has a line for each thread.
    """
    by_btf = _has_stack_areas_by_btf(roots)
    if by_btf is not None:
        return by_btf
    try:
        with (roots.proc / "vmallocinfo").open("rb") as lines:
            return has_stack(itertools.islice(lines, _MAX_AREAS))
    except OSError:
        return True  # so it is on every 64-bit kernel of today


def _has_stack_areas_by_btf(roots: HostRoots) -> bool | None:
    """Whether task_struct has the field that only CONFIG_VMAP_STACK gives it; None where the kernel shows no BTF."""
    try:
        btf = (roots.sys / "kernel/btf/vmlinux").read_bytes()
    except OSError:
        return None
    return b"\0stack_vm_area\0" in btf


def _sums_up_vmalloc(roots: HostRoots) -> bool:
    path = roots.proc / "meminfo"
    try:
        return parse_meminfo(path.read_bytes(), source=str(path)).vmalloc_bytes > 0
    except (OSError, ProcFormatError):
        return False


def _undisturbed_cpu_count(roots: HostRoots) -> int:
    """CPUs that are isolated, or that have no tick, whichever are more: mostly they are the same.

    All of them, where the kernel's list is not understood: to leave a CPU alone costs little.
    """
    counts = [0]
    for name in ("isolated", "nohz_full"):
        path = roots.sys / "devices/system/cpu" / name
        try:
            counts.append(parse_undisturbed_cpu_count(path.read_bytes(), source=str(path)))
        except FileNotFoundError:  # a kernel without CONFIG_CPU_ISOLATION or CONFIG_NO_HZ_FULL
            continue
        except (OSError, ProcFormatError):
            counts.append(os.cpu_count() or 1)
    return max(counts)


def _read_huge_page_bytes(path: Path) -> int:
    try:
        text = path.read_bytes()
    except FileNotFoundError:  # a kernel without CONFIG_TRANSPARENT_HUGEPAGE
        return 0
    if not text.strip().isdigit() or len(text) > len("1099511627776\n"):
        raise ProcFormatError(str(path), 1, text, "a size in bytes")
    return int(text)
