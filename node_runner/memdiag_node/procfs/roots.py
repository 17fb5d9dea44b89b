"""The paths of the host's /proc and /sys."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostRoots:
    """The roots of the host's kernel files. All readers take them as a parameter: none uses /proc directly."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
