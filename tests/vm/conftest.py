"""The vm tier: what it needs, and a table of what each guest took."""

import os
import shutil

import pytest

from support.guest import GuestRun

GUESTS = pytest.StashKey[list[GuestRun]]()


@pytest.fixture(scope="session")
def guests(pytestconfig: pytest.Config) -> list[GuestRun]:
    """Those of this session, for the table; skips where none can be made and booted."""
    if os.geteuid() != 0:
        pytest.skip("the vm tier needs root: its guests' disks are made by mmdebstrap, containerd and mke2fs")
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs"):
        if shutil.which(program) is None:
            pytest.skip(f"the vm tier needs {program}: python3 -m local_cluster prepare qemu-system-x86 e2fsprogs")
    return pytestconfig.stash.setdefault(GUESTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What loading, tracing and scanning took on each kernel."""
    guests = config.stash.get(GUESTS, [])
    if guests:
        terminalreporter.section("kernels")
        for guest in guests:
            terminalreporter.line(guest.figures())
            for warning in guest.warnings:
                terminalreporter.line(warning)
