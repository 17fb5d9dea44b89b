"""The vm tier: its requirements, the guests that its tests need, and a table of the time that each guest took."""

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_cluster.case_outcome import Cause, Outcome
from planted import leaking_modules, nfqueue, protocols
from support import guest_census, guest_planted, guest_program
from support.guest import NATIVE, GuestRun, run_guest
from support.guest_case import run_case
from support.guest_lab import SUITES, Answers, Call, call_in_guest
from support.guest_pool import GuestPool
from support.guest_variants import boot_variant

_CALLS = {
    "leak": Call(guest_planted.leak),
    "lost": Call(guest_planted.lost),
    "nfqueue": Call(guest_planted.queued_for_verdict),
    "sctp": Call(guest_planted.unread_sctp),
    "ktls": Call(guest_planted.unread_ktls),
    "fragments": Call(guest_planted.fragments),
    "zombie": Call(guest_planted.zombie),
    "neighbour": Call(guest_planted.neighbour),
    "slab_heads": Call(guest_planted.slab_heads),
    "tun": Call(guest_planted.tun),
    "sockmap": Call(guest_planted.sockmap),
    "messages": Call(guest_planted.system_v_messages),
    "trace_buffer": Call(guest_planted.trace_buffer),
    "io_uring": Call(guest_planted.io_uring),
    "maps": Call(guest_planted.maps),
    "memfd": Call(guest_planted.file_in_memory),
    "deleted_file": Call(guest_planted.deleted_file),
    "runner": Call(guest_program.runner, "--preflight"),
    "census": Call(guest_census.census),
}
_MODULES = (
    *nfqueue.MODULES,
    *protocols.SCTP_MODULES,
    *protocols.KTLS_MODULES,
    "sch_tbf",
    "tun",
    "veth",
)
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


def plant_in_guest(suite: str, work: Path) -> Answers:
    """Every load at once, each looked at, and one run of memdiag-node that sees them all."""
    return call_in_guest(suite, _CALLS, work, modules=_MODULES, built_from=leaking_modules.SOURCES)


_BOOTS = {"suite": run_guest, "guest": plant_in_guest, "variant": boot_variant}
"""By the parameter of a test that selects the guest."""


def _guests_of(item: pytest.Item) -> Iterator[tuple[str, str]]:
    callspec = getattr(item, "callspec", None)
    for name, parameter in callspec.params.items() if callspec else ():
        if name in _BOOTS and parameter != NATIVE:
            yield name, parameter


@pytest.fixture(scope="session")
def pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guests: list[GuestRun]) -> GuestPool:
    """All guests that the selected tests need, in the order of the tests."""
    pool = GuestPool()
    for name, parameter in dict.fromkeys(one for item in request.session.items for one in _guests_of(item)):
        work = tmp_path_factory.mktemp(f"{name}-{parameter}")
        pool.add((name, parameter), functools.partial(_BOOTS[name], parameter, work))
    return pool


@pytest.fixture(scope="session", params=[Cause.STOPPED.value])
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guests: list[GuestRun]
) -> Outcome:
    """The measurements of `make case`. Its guest has work for both CPUs, so it runs before all others, alone."""
    return run_case(request.param, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session", params=SUITES)
def guest(request: pytest.FixtureRequest, pool: GuestPool) -> Answers:
    """What was planted in a guest, and seen there. One boot of each kernel for all files of tests."""
    found: Answers = pool.result(("guest", request.param))
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The time for loading, tracing and scanning on each kernel."""
    guests = config.stash.get(GUESTS, [])
    if guests:
        terminalreporter.section("kernels")
        for guest in guests:
            terminalreporter.line(guest.figures())
            for warning in guest.warnings:
                terminalreporter.line(warning)
