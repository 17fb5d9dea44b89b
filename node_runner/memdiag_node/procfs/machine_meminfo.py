"""Fields of /proc/meminfo that are not part of the breakdown (kernel: fs/proc/meminfo.c)."""

import re
from dataclasses import dataclass

_LINE = re.compile(rb"(\w+): +(\d{1,15}) kB")
_BYTES_PER_KB = 1024


@dataclass(frozen=True, slots=True)
class MachineMemInfo:
    """In bytes. None: this kernel does not count it."""

    vmalloc_bytes: int
    """0 before Linux 5.3."""
    zswap_taken_bytes: int
    """Memory that zswap's compressed pages take. 0 before Linux 5.19."""
    zswap_stored_bytes: int
    gpu_active_bytes: int | None
    """Since Linux 6.19."""
    gpu_reclaimable_bytes: int | None
    balloon_bytes: int | None
    """Since Linux 6.16."""


def parse_machine_meminfo(text: bytes) -> MachineMemInfo:
    """Parse the fields. Lines of another form are skipped: procfs.meminfo checks the file."""
    fields = {match[1]: int(match[2]) * _BYTES_PER_KB for line in text.splitlines() if (match := _LINE.fullmatch(line))}
    return MachineMemInfo(
        vmalloc_bytes=fields.get(b"VmallocUsed", 0),
        zswap_taken_bytes=fields.get(b"Zswap", 0),
        zswap_stored_bytes=fields.get(b"Zswapped", 0),
        gpu_active_bytes=fields.get(b"GPUActive"),
        gpu_reclaimable_bytes=fields.get(b"GPUReclaim"),
        balloon_bytes=fields.get(b"Balloon"),
    )
