"""The machine that a benchmark ran on, and its section of docs/benchmarks.md."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from memdiag_api.units import format_bytes

_TITLE = "# Benchmarks\n"


def machine() -> str:
    """One line about the machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return f"Linux {platform.release()}, {os.cpu_count()} CPUs ({model}), {format_bytes(memory_bytes)}"


def with_tracefs(command: Sequence[str], setup: Sequence[str] = ()) -> list[str]:
    """The command with tracefs and debugfs mounted, after the shell commands `setup`.

    It runs in a separate mount namespace, so its mounts end with it. Existing mounts, which systemd makes on every
    machine, are used as they are: the kernel refuses to mount these a second time at the same place.
    """
    mounts = [
        f"{{ grep -qs ' {place} {kind} ' /proc/self/mounts || mount -t {kind} {kind} {place}; }}"
        for place, kind in (("/sys/kernel/debug", "debugfs"), ("/sys/kernel/tracing", "tracefs"))
    ]
    script = " && ".join(["mount --make-rprivate /", *mounts, *setup, 'exec "$@"'])
    return ["unshare", "--mount", "sh", "-c", script, "sh", *command]


def write_section(path: Path, heading: str, text: str) -> None:
    """Replace the section with that heading, or append it; all others stay as they are."""
    document = path.read_text() if path.exists() else _TITLE
    path.write_text(with_section(document, heading, text))


def with_section(document: str, heading: str, text: str) -> str:
    """A Markdown document with the text of its section `heading` (level 2) replaced by `text`."""
    section = f"## {heading}\n\n{text.strip()}\n"
    parts = re.split(r"^(?=## )", document, flags=re.MULTILINE)
    places = [place for place, part in enumerate(parts) if part.startswith(f"## {heading}\n")]
    if places:
        parts[places[0]] = section
    else:
        parts.append(section)
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)
