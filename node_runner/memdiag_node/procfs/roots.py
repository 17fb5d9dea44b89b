"""Where the host's /proc and /sys are."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class HostRoots:
    """The roots of the host's kernel files. Every reader gets them: none names /proc itself."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
