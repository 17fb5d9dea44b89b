"""The vm tier: its requirements, and a table of the time that each guest took."""

import os
import shutil

import pytest

from support.guest import GuestRun

GUESTS = pytest.StashKey[list[GuestRun]]()


@pytest.fixture(scope="session")
def guests(pytestconfig: pytest.Config) -> list[GuestRun]:
    """The guests of this session, for the table; skips if none can be built and booted."""
    if os.geteuid() != 0:
        pytest.skip("the vm tier needs root: its guests' disks are made by mmdebstrap, containerd and mke2fs")
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs"):
        if shutil.which(program) is None:
            pytest.skip(f"the vm tier needs {program}: python3 -m local_cluster prepare qemu-system-x86 e2fsprogs")
    return pytestconfig.stash.setdefault(GUESTS, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The time for loading, tracing and scanning on each kernel."""
    guests = config.stash.get(GUESTS, [])
    if guests:
        terminalreporter.section("kernels")
        for guest in guests:
            terminalreporter.line(guest.figures())
            for warning in guest.warnings:
                terminalreporter.line(warning)
