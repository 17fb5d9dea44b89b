"""The cases of the accuracy work that need a kernel module or a hypervisor: what one diagnosis in a guest says."""

from typing import Any

import pytest

from accuracy.judge import judge
from support.guest import WAIT_SECONDS
from support.guest_accuracy import CASES, truth_of
from support.guest_lab import Answers

CLOSE = 0.1

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test boots the guest


def first_findings(document: dict[str, Any]) -> str:
    """The leading findings and the verdict, for the message of a failure."""
    sentences = [f"{one['kind']} ({one['leak']}): {one['sentence']}" for one in document.get("findings", ())[:4]]
    return "\n".join([f"LeakDetected {document.get('leakDetected')}", *sentences])


def document_of(answer: dict[str, Any]) -> dict[str, Any]:
    said = "\n".join(line for _, line in answer["run"]["stderr"])
    assert answer["run"]["status"] == 0, said
    document: dict[str, Any] = answer["document"]
    return document


@pytest.mark.parametrize("name", CASES)
def test_the_first_finding_and_the_verdict_are_right(diagnosed: Answers, name: str) -> None:
    document, truth = document_of(diagnosed[name]), truth_of(diagnosed[name])
    judged = judge(document, truth)
    assert judged.faults == (), first_findings(document)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.is_healthy])
def test_the_first_finding_has_the_planted_size(diagnosed: Answers, name: str) -> None:
    document, truth = document_of(diagnosed[name]), truth_of(diagnosed[name])
    assert document["findings"][0]["sizeBytes"] == pytest.approx(truth.size_bytes, rel=CLOSE), first_findings(document)


def test_the_module_of_leaked_objects_is_named(diagnosed: Answers) -> None:
    first = document_of(diagnosed["module_objects"])["findings"][0]
    assert any("planted_leak_callback" in reason for reason in first["reasons"]), first["reasons"]
    assert "planted_leak" in first["advice"], first["advice"]
