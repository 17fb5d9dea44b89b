"""Files of /proc and /sys that the breakdown needs, found by trying."""

import os
from collections.abc import Iterator

from memdiag_api.evidence import Check, Need
from memdiag_node.breakdown.reading import fold_per_cpu_counts
from memdiag_node.breakdown.surroundings import (
    USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU,
    has_stack_areas_by_btf,
    read_kernel_log,
    undisturbed_cpu_count,
)
from memdiag_node.preflight.need import degraded, met, missing, why_unreadable
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.kernel_log import parse_first_chunk_pages_per_cpu
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.roots import HostRoots

_BREAKDOWN = (Check.BREAKDOWN,)
_CLASSES = (Check.BREAKDOWN, Check.OWNERS)
"""Both need the sizes of the classes."""


def needs(roots: HostRoots) -> list[Need]:
    """Return the needs of the breakdown, in the order in which to fix them."""
    return [*_file_needs(roots), *_vmallocinfo_need(roots), _kernel_log_need(), _stat_refresh_need(roots)]


def _file_needs(roots: HostRoots) -> Iterator[Need]:
    for path in (
        roots.proc / "meminfo",
        roots.proc / "zoneinfo",
        roots.proc / "vmstat",
        roots.sys / "devices/system/cpu/possible",
    ):
        if problem := why_unreadable(path):
            yield missing(
                str(path),
                _CLASSES,
                f"{problem}. No breakdown is possible.",
                "Give the runner the /proc and /sys of the host, not those that a container runtime emulates.",
            )
        else:
            yield met(str(path), _CLASSES)


def _vmallocinfo_need(roots: HostRoots) -> Iterator[Need]:
    """Check /proc/vmallocinfo, unless it is not read: BTF shows where stacks are, and meminfo sums up vmalloc."""
    if has_stack_areas_by_btf(roots) is not None and _sums_up_vmalloc(roots):
        return
    path = roots.proc / "vmallocinfo"
    problem = why_unreadable(path)
    if problem is None:
        yield met(str(path), _BREAKDOWN)
        return
    yield degraded(
        str(path),
        _BREAKDOWN,
        f"{problem}. Kernel stacks are assumed to be part of vmalloc. If VmallocUsed in meminfo is 0 (before "
        "Linux 5.3), vmalloc memory is shown as AllocPage.",
        "Run as root.",
    )


def _kernel_log_need() -> Need:
    log = read_kernel_log()
    if log is not None and parse_first_chunk_pages_per_cpu(log) is not None:
        return met("kernel log", _BREAKDOWN)
    reason = "cannot be read" if log is None else "no longer contains the boot messages"
    error_kib = USUAL_FIRST_CHUNK_ERROR_PAGES_PER_CPU * os.sysconf("SC_PAGE_SIZE") // 1024
    return degraded(
        "kernel log",
        _BREAKDOWN,
        f"It {reason}. The per-CPU memory reserved at boot is estimated, with an error of up to "
        f"{error_kib} KiB per CPU.",
        "Run as root, or with the capability SYSLOG." if log is None else "No action is needed: the error is small.",
    )


def _stat_refresh_need(roots: HostRoots) -> Need:
    path = roots.proc / "sys/vm/stat_refresh"
    if undisturbed := undisturbed_cpu_count(roots):
        return degraded(
            str(path),
            _BREAKDOWN,
            f"Not used, because {undisturbed} CPUs are isolated or have no tick (nohz_full), and it would wait for "
            "them. Counts that they have not added to the totals are part of the error of AllocPage.",
            "No action is needed.",
        )
    if fold_per_cpu_counts(roots):
        return met(str(path), _BREAKDOWN)
    return degraded(
        str(path),
        _BREAKDOWN,
        "It cannot be read. Counters may be a second old, so the error of AllocPage is larger while the node is busy.",
        "Run as root.",
    )


def _sums_up_vmalloc(roots: HostRoots) -> bool:
    path = roots.proc / "meminfo"
    try:
        return parse_meminfo(path.read_bytes(), source=str(path)).vmalloc_bytes > 0
    except (OSError, ProcFormatError):
        return False
