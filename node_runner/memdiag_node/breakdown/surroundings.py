"""Properties of the machine that a breakdown depends on and that do not change: read once for many readings."""

import ctypes
import itertools
import math
import os
from dataclasses import dataclass
from pathlib import Path

from memdiag_node.procfs.balloon import balloon_stays_in_total, free_pages_are_reported
from memdiag_node.procfs.cpulist import parse_undisturbed_cpu_count, possible_cpus
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kernel_log import parse_first_chunk_pages_per_cpu
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.vmallocinfo import has_stack

# For a boot log without the line. x86-64 and arm64 kernels of the large distributions print 48 to 96 pages.
_USUAL_FIRST_CHUNK_PAGES_PER_CPU = 72
USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU = 24
# mm/vmstat.c, calculate_normal_threshold: the most that a CPU keeps of a counter before adding it to the total.
_FOLD_THRESHOLD_PAGES = 125
# Such counters in the AllocPage formula: free, five LRU lists, two of isolated pages, two of slab, two of page tables,
# zsmalloc.
_COUNTERS = 13
_MAX_AREAS = 10_000  # of vmalloc: by then, a kernel with stacks in vmalloc has shown one
_SYSLOG_ACTION_READ_ALL = 3
_SYSLOG_ACTION_SIZE_BUFFER = 10


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Properties of the machine that do not change, or rarely: read once for many readings."""

    page_size_bytes: int
    huge_page_bytes: int
    """Size of a transparent huge page. 0 if the kernel has none."""
    first_chunk_bytes: int
    """Part of `Percpu` that is outside of MemTotal."""
    first_chunk_error_bytes: int
    stacks_in_vmalloc: bool
    balloon_in_total: bool
    free_pages_reported: bool = False
    """Free pages are temporarily on no free list while they are reported to the hypervisor."""
    undisturbed_cpus: int = 0
    """Number of CPUs that are isolated or have no tick, and must not be disturbed."""

    @property
    def unfolded_error_bytes(self) -> int:
        """Return the error of the sum from counts that such CPUs have not added, with 95 % probability.

        Each CPU keeps up to _FOLD_THRESHOLD_PAGES of each counter, positive or negative, evenly distributed.
        """
        counts = self.undisturbed_cpus * _COUNTERS
        return round(2 * _FOLD_THRESHOLD_PAGES * math.sqrt(counts / 3)) * self.page_size_bytes


def read_surroundings(roots: HostRoots, *, kernel_log: bytes | None) -> Surroundings:
    """Read the properties of the machine. `kernel_log` is None if it cannot be read."""
    page_size_bytes = os.sysconf("SC_PAGE_SIZE")
    cpus = len(possible_cpus(roots.sys))
    found = parse_first_chunk_pages_per_cpu(kernel_log or b"")
    return Surroundings(
        page_size_bytes=page_size_bytes,
        huge_page_bytes=read_huge_page_bytes(roots.sys),
        first_chunk_bytes=(found or _USUAL_FIRST_CHUNK_PAGES_PER_CPU) * cpus * page_size_bytes,
        first_chunk_error_bytes=0 if found else USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU * cpus * page_size_bytes,
        stacks_in_vmalloc=_stacks_are_in_vmalloc(roots),
        balloon_in_total=balloon_stays_in_total(roots.sys),
        free_pages_reported=free_pages_are_reported(roots.sys),
        undisturbed_cpus=undisturbed_cpu_count(roots),
    )


def read_kernel_log() -> bytes | None:
    """Return the kernel log (man 2 syslog), or None if it requires CAP_SYSLOG and this process does not have it."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SYSLOG_ACTION_SIZE_BUFFER, None, 0)
    if size <= 0:
        return None
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_ACTION_READ_ALL, buffer, size)
    return buffer.raw[:length] if length >= 0 else None


def _stacks_are_in_vmalloc(roots: HostRoots) -> bool:
    """Return whether kernel stacks are allocated by vmalloc (CONFIG_VMAP_STACK).

    /proc/vmallocinfo shows it too, but reading it blocks vmalloc, and it has a line for each thread.
    """
    by_btf = has_stack_areas_by_btf(roots)
    if by_btf is not None:
        return by_btf
    try:
        with (roots.proc / "vmallocinfo").open("rb") as lines:
            return has_stack(itertools.islice(lines, _MAX_AREAS))
    except OSError:
        return True  # as on all current 64-bit kernels


def has_stack_areas_by_btf(roots: HostRoots) -> bool | None:
    """Return whether task_struct has the field that only CONFIG_VMAP_STACK adds. None if the kernel has no BTF."""
    try:
        btf = (roots.sys / "kernel/btf/vmlinux").read_bytes()
    except OSError:
        return None
    return b"\0stack_vm_area\0" in btf


def undisturbed_cpu_count(roots: HostRoots) -> int:
    """Return the number of CPUs that are isolated or have no tick, the larger one: they are usually the same CPUs.

    If a list cannot be parsed, all CPUs count: not disturbing a CPU costs little.
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


def read_huge_page_bytes(sys: Path) -> int:
    """Return the size of a transparent huge page. 0 if the kernel has none. Raises ProcFormatError."""
    path = sys / "kernel/mm/transparent_hugepage/hpage_pmd_size"
    try:
        text = path.read_bytes()
    except FileNotFoundError:  # a kernel without CONFIG_TRANSPARENT_HUGEPAGE
        return 0
    if not text.strip().isdigit() or len(text) > len("1099511627776\n"):
        raise ProcFormatError(str(path), 1, text, "a size in bytes")
    return int(text)
