"""Tiers: a test's folder names its tier, a tier that cannot run says why, and MEMDIAG_REQUIRE_ALL=1 accepts no skip.

The `api`, `e2e` and `vm` tiers skip in their own fixtures, which know what is missing.
`-m fault` prints the fault table.
"""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings

from support import fault_table
from support.guest_boots import guest_pool

__all__ = ["guest_pool"]

TESTS_ROOT = Path(__file__).parent
# In the order in which they run: what measures the machine comes before the clusters that live on it until the end.
TIERS = ("unit", "kernel", "api", "e2e", "vm")
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

# By default Hypothesis asserts that an example takes less than 200 ms, and is found fast: a busy machine fails that.
settings.register_profile("memdiag", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("memdiag")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


FAULT_ROWS = pytest.StashKey[dict[str, list[fault_table.Row]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --write-faults."""
    parser.addoption("--write-faults", type=Path, metavar="FILE", help="with -m fault: write the fault table there")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Remember which faults the selected tests make."""
    tiers = {item.nodeid: _tier(item) for item in session.items}
    session.config.stash[FAULT_ROWS] = fault_table.expected_rows(session.items, tiers)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the fault table, if faults were asked for."""
    if config.option.markexpr != "fault" or FAULT_ROWS not in config.stash:
        return
    reports = [one for group in ("passed", "failed", "error", "skipped") for one in terminalreporter.getreports(group)]
    rows = fault_table.filled_rows(config.stash[FAULT_ROWS], reports)
    terminalreporter.section("faults")
    terminalreporter.write_line(fault_table.as_text(rows))
    if path := config.getoption("--write-faults"):
        fault_table.write(path, rows)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its tier, and run tier after tier."""
    for item in items:
        if (tier := _tier(item)) in TIERS:
            item.add_marker(tier)
    items.sort(key=lambda item: TIERS.index(_tier(item)) if _tier(item) in TIERS else len(TIERS))


def _tier(item: pytest.Item) -> str:
    return item.path.relative_to(TESTS_ROOT).parts[0]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the kernel tier where it cannot run."""
    if item.get_closest_marker("kernel") is None:
        return
    if os.geteuid() != 0:
        pytest.skip("the kernel tier needs root")
    if not KERNEL_BTF.exists():
        pytest.skip(f"the kernel tier needs a kernel with BTF: {KERNEL_BTF} is not there")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `_refuse_skip`: skips of a test."""
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """See `_refuse_skip`: skips of a whole file."""
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    """Turn a skip into a failure that gives the skip's reason, when nothing may be skipped."""
    if report.skipped and os.environ.get("MEMDIAG_REQUIRE_ALL") == "1":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"MEMDIAG_REQUIRE_ALL=1 accepts no skip, but: {reason}"
    return report
