"""The kernel's own counters by class of memory, to see that what a case claims to plant is there.

Independent of memdiag's breakdown, and less exact: AllocPage is what all other counters leave, and the pages that each
CPU keeps for itself, which are free.
"""

import time
from pathlib import Path

_KIB = 1 << 10
_PAUSE_SECONDS, _MAX_READINGS, _RESTLESS_BYTES = 1.0, 10, 2 << 20
_OTHER = (
    "MemFree", "Buffers", "Cached", "SwapCached", "AnonPages", "Slab", "KernelStack", "PageTables", "SecPageTables",
    "Percpu",
)  # fmt: skip


def class_sizes() -> dict[str, int]:
    """Bytes by class."""
    fields = {name: int(value.split()[0]) for name, value in _lines("/proc/meminfo", ":")}
    pages = {name: int(value) for name, value in _lines("/proc/vmstat", " ")}
    page_bytes = 4 * _KIB
    zsmalloc_bytes = pages.get("nr_zspages", 0) * page_bytes
    vmalloc_bytes = fields.get("VmallocUsed", 0) * _KIB - fields.get("KernelStack", 0) * _KIB
    hugetlb_bytes = fields.get("Hugetlb", 0) * _KIB
    idle_bytes = sum(int(value) for name, value in _lines("/proc/zoneinfo", ":") if name == "count") * page_bytes
    used = (
        idle_bytes + sum(fields.get(name, 0) for name in _OTHER) * _KIB + zsmalloc_bytes + vmalloc_bytes + hugetlb_bytes
    )
    return {
        "AllocPage": fields["MemTotal"] * _KIB - used,
        "AnonPages": fields["AnonPages"] * _KIB,
        "FileCache": (fields["Buffers"] + fields["Cached"] - fields["Shmem"]) * _KIB,
        "Shmem": fields["Shmem"] * _KIB,
        "SUnreclaim": fields["SUnreclaim"] * _KIB,
        "SReclaimable": fields["SReclaimable"] * _KIB,
        "KernelStack": fields["KernelStack"] * _KIB,
        "PageTables": fields["PageTables"] * _KIB,
        "Percpu": fields["Percpu"] * _KIB,
        "Vmalloc": vmalloc_bytes,
        "Hugetlb": hugetlb_bytes,
        "Zsmalloc": zsmalloc_bytes,
    }


def settled_class_sizes() -> dict[str, int]:
    """The same when AllocPage has come to rest: the kernel frees what a case held some time after its end."""
    sizes = class_sizes()
    for _ in range(_MAX_READINGS):
        time.sleep(_PAUSE_SECONDS)
        before, sizes = sizes, class_sizes()
        if abs(sizes["AllocPage"] - before["AllocPage"]) < _RESTLESS_BYTES:
            break
    return sizes


def _lines(path: str, separator: str) -> list[tuple[str, str]]:
    pairs = [line.split(separator, 1) for line in Path(path).read_text().splitlines() if separator in line.strip()]
    return [(name.strip(), value.strip()) for name, value in pairs]
