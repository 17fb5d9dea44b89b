"""CPU lists such as `0-3,8`, in /sys/devices/system/cpu (kernel: admin-guide/cputopology.rst)."""

import re
from pathlib import Path

from memdiag_node.procfs.errors import ProcFormatError

_RANGE = re.compile(rb"(\d{1,6})(?:-(\d{1,6}))?")


def online_cpus(sys: Path) -> list[int]:
    """Return the numbers of the CPUs that are online. Raises OSError, or ProcFormatError."""
    return _read_cpus(sys / "devices/system/cpu/online")


def possible_cpus(sys: Path) -> list[int]:
    """Return the numbers of the CPUs that can be online some time: per-CPU memory has a copy for each of them.

    Raises OSError, or ProcFormatError.
    """
    return _read_cpus(sys / "devices/system/cpu/possible")


def _read_cpus(path: Path) -> list[int]:
    return parse_cpus(path.read_bytes(), source=str(path))


def parse_cpus(text: bytes, *, source: str = "cpulist") -> list[int]:
    """Return the numbers of the CPUs in a list. Raises ProcFormatError if it is not one line of ranges."""
    cpus: list[int] = []
    for part in text.strip().split(b","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ProcFormatError(source, 1, text, "a list of CPUs such as 0-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ProcFormatError(source, 1, text, "a list of CPUs such as 0-3,8")
        cpus += range(first, last + 1)
    return cpus


def parse_cpu_count(text: bytes, *, source: str = "cpulist") -> int:
    """Return the number of CPUs in a list. Raises ProcFormatError if it is not one line of ranges."""
    return len(parse_cpus(text, source=source))


def parse_undisturbed_cpu_count(text: bytes, *, source: str = "cpulist") -> int:
    """As parse_cpu_count, for `isolated` and `nohz_full`: without such CPUs they are empty, or `(null)`."""
    return 0 if text.strip() in {b"", b"(null)"} else parse_cpu_count(text, source=source)
