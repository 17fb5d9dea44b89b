"""The vm tier: its requirements, and a table of the time that each guest took."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from planted import leaking_modules, nfqueue, protocols
from support import guest_census, guest_planted, guest_program
from support.guest import GuestRun
from support.guest_lab import SUITES, Answers, Call, call_in_guest

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
LINES = pytest.StashKey[list[str]]()
NATIVE = "native"


@pytest.fixture(scope="session")
def guests(pytestconfig: pytest.Config) -> list[GuestRun]:
    """The guests of this session, for the table; skips if none can be built and booted."""
    if os.geteuid() != 0:
        pytest.skip("the vm tier needs root: its guests' disks are made by mmdebstrap, containerd and mke2fs")
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs"):
        if shutil.which(program) is None:
            pytest.skip(f"the vm tier needs {program}: python3 -m local_cluster prepare qemu-system-x86 e2fsprogs")
    return pytestconfig.stash.setdefault(GUESTS, [])


@pytest.fixture(scope="session", params=SUITES)
def guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guests: list[GuestRun]) -> Answers:
    """What was planted in a guest, and seen there. One boot of each kernel for all files of tests."""
    work = tmp_path_factory.mktemp(request.param)
    return call_in_guest(request.param, _CALLS, work, modules=_MODULES, built_from=leaking_modules.SOURCES)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs in a guest, which may run beside other guests, and keep tests that share one together."""
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        chosen = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if chosen.get("suite") == NATIVE:
            continue
        group = f"planted-{chosen['guest']}" if "guest" in chosen else f"{item.path.stem}-{chosen.get('suite', '')}"
        item.add_marker(pytest.mark.in_guest)
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Pass a worker's part of the table to the session that prints it."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["guests"] = _lines(session.config)


def pytest_testnodedown(node: Any) -> None:
    """Keep a worker's part of the table."""
    node.config.stash.setdefault(LINES, []).extend(node.workeroutput.get("guests", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The time for loading, tracing and scanning on each kernel."""
    lines = [*config.stash.get(LINES, []), *_lines(config)]
    if lines:
        terminalreporter.section("kernels")
        for line in lines:
            terminalreporter.line(line)


def _lines(config: pytest.Config) -> list[str]:
    return [line for guest in config.stash.get(GUESTS, []) for line in (guest.figures(), *guest.warnings)]
