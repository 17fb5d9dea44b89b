"""A guest never hangs a test: it is ended when its time is over, and its console tells how far it came."""

from pathlib import Path

import pytest

from local_cluster import guest_disk, guest_kernel
from local_cluster.steps import StepError
from local_cluster.virtual_machine import KernelPanicError, VirtualMachine
from support.guest import GuestRun


def processes_with(path: Path) -> list[str]:
    """The programs that have `path` in their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(str(path).encode() in word for word in command):
            found.append(command[0].decode())
    return found


def test_a_guest_that_does_not_end_is_ended_and_its_console_shown(guests: list[GuestRun], tmp_path: Path) -> None:
    kernel, mark = guest_kernel.provide("bookworm"), ["-name", str(tmp_path)]
    machine = VirtualMachine(kernel, [], init="/bin/sh", memory_mib=512, devices=mark)
    console = tmp_path / "console.log"
    with pytest.raises(StepError, match=r"did not end within 20 s") as caught:
        machine.run(console, timeout_seconds=20)
    assert console.read_text(errors="replace").splitlines()[-1] in str(caught.value)
    assert processes_with(tmp_path) == []


def test_a_kernel_that_panics_ends_the_guest_at_once(guests: list[GuestRun], tmp_path: Path) -> None:
    machine = VirtualMachine(
        guest_kernel.provide("bookworm"), [guest_disk.provide_runner_disk()], init="/usr/bin/false", memory_mib=512
    )
    with pytest.raises(KernelPanicError, match="Kernel panic - not syncing: Attempted to kill init!"):
        machine.run(tmp_path / "console.log", timeout_seconds=300)
