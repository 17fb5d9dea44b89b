"""The benchmarks' tracers have tracefs, whether or not the machine has mounted it."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from support.benchmarks import with_tracefs

LOOK = ["sh", "-c", "cat /sys/kernel/tracing/events/kmem/mm_page_alloc/id && grep -c ' tracefs ' /proc/self/mounts"]
UNMOUNTED = "umount -R /sys/kernel/tracing 2>/dev/null; umount -R /sys/kernel/debug 2>/dev/null; true"
MOUNTED = f"{UNMOUNTED}; mount -t debugfs debugfs /sys/kernel/debug && mount -t tracefs tracefs /sys/kernel/tracing"


def on_a_machine(prepared: str, command: Sequence[str]) -> list[str]:
    """Run a command in its own mount namespace with the mounts `prepared`; returns the lines that it printed."""
    script = f'mount --make-rprivate / && {{ {prepared}; }} && exec "$@"'
    run = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize("prepared", [UNMOUNTED, MOUNTED], ids=["not mounted", "mounted"])
def test_a_tracer_finds_tracefs_once(prepared: str) -> None:
    before = Path("/proc/self/mounts").read_text()
    number, mounts = on_a_machine(prepared, with_tracefs(LOOK))
    assert int(number) > 0
    assert int(mounts) == 1
    assert Path("/proc/self/mounts").read_text() == before


def test_the_setup_is_done_first() -> None:
    assert on_a_machine(UNMOUNTED, with_tracefs(["pwd"], setup=["cd /usr"])) == ["/usr"]
