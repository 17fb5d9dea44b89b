"""A failure in a check that continues prevents the verdict NoLeak."""

import pytest

from memdiag_api.evidence import Check
from memdiag_node.attempts import Attempts
from memdiag_node.findings.doubts import Doubt


def failed(check: Check, doing: str, *, optional: bool) -> Attempts:
    attempts = Attempts(tuple(Check), lambda _: None)
    with attempts.step(check, doing, optional=optional):
        raise OSError(5, "Input/output error")
    return attempts


@pytest.mark.parametrize("check", [Check.SOCKET_QUEUES, Check.ALLOC_PAGE_TRACE])
def test_a_failed_step_of_a_leak_check_rules_out_no_leak(check: Check) -> None:
    attempts = failed(check, "the first scan", optional=True)
    assert check in attempts.checks
    (doubt,) = attempts.doubts()
    assert doubt.forbids_no
    assert doubt.sentence.endswith("the first scan failed: [Errno 5] Input/output error")


def test_a_failed_census_only_lowers_the_confidence() -> None:
    (doubt,) = failed(Check.BREAKDOWN, "the census", optional=True).doubts()
    assert doubt == Doubt("breakdown: the census failed: [Errno 5] Input/output error", forbids_no=False)


def test_a_check_that_failed_needs_no_separate_doubt() -> None:
    """It is missing from the checks, which rules out NoLeak already."""
    attempts = failed(Check.SOCKET_QUEUES, "loading its programs", optional=False)
    assert Check.SOCKET_QUEUES not in attempts.checks
    assert attempts.doubts() == []
