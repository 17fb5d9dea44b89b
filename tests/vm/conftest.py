"""The vm tier: the order of its tests, and a table of the time that each guest took."""

import pytest

from local_cluster.case_outcome import Cause, Outcome
from support.guest import GuestRun
from support.guest_case import run_case
from support.guest_lab import SUITES, Answers
from support.guest_pool import GuestPool

GUESTS = pytest.StashKey[list[GuestRun]]()


@pytest.fixture(scope="session")
def guests(pytestconfig: pytest.Config, guest_pool: GuestPool) -> list[GuestRun]:
    """The guests of this session, for the table; skips if none can be booted."""
    return pytestconfig.stash.setdefault(GUESTS, [])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the case last: its guest has work for both CPUs."""
    items.sort(key=lambda item: "outcome" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session", params=[Cause.STOPPED.value])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guest_pool: GuestPool) -> Outcome:
    """The measurements of `make case`, while no other guest runs."""
    guest_pool.wait()
    return run_case(request.param, tmp_path_factory.mktemp("case"))


@pytest.fixture(scope="session", params=SUITES)
def guest(request: pytest.FixtureRequest, guest_pool: GuestPool) -> Answers:
    """What was planted in a guest, and seen there. One boot of each kernel for all files of tests."""
    found: Answers = guest_pool.result(("guest", request.param))
    return found


@pytest.fixture(scope="session", params=["trixie"])
def diagnosed(request: pytest.FixtureRequest, guest_pool: GuestPool) -> Answers:
    """The cases of the accuracy work that need a guest, with their diagnoses, on Linux 6.12."""
    found: Answers = guest_pool.result(("diagnosed", request.param))
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
