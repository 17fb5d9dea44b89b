"""The judge on documents that are right, and on documents that are wrong in one respect."""

import dataclasses
from typing import Any

import pytest

from accuracy.judge import Judgement, judge, outcome
from planted.cases.case import HEALTHY, Answer, PlantedTruth

STUCK = PlantedTruth(Answer.LEAK, ("UnreadSocket",), ("AllocPage",), size_bytes=1_000, pids=(7,), fds=(5, 6))
CONTAINER = "4f1c" * 16


def finding(**changes: object) -> dict[str, Any]:
    """What the runner says about STUCK, with changes."""
    owner = {"kind": "Process", "name": "python[7]", "pid": 7, "fds": [5]}
    return {"kind": "UnreadSocket", "memoryClass": "AllocPage", "sizeBytes": 1_100, "owner": owner, **changes}


def document(*findings: dict[str, Any], leak_detected: str | None = "True") -> dict[str, Any]:
    return {"findings": list(findings), "leakDetected": leak_detected, "window": {"tracedSeconds": 10.0}}


def test_the_planted_owner_and_class_in_the_first_finding_are_right() -> None:
    judged = judge(document(finding()), STUCK)
    assert judged.is_right
    assert judged.off_share == pytest.approx(0.1)
    assert judged.first_finding == "UnreadSocket, 0 MiB AllocPage: Process python[7]"


def test_what_comes_back_is_compared_too() -> None:
    assert judge(document(finding(freedBy={"sizeBytes": 950})), STUCK).freed_off_share == pytest.approx(0.05)
    more = dataclasses.replace(STUCK, freed_bytes=1_900)
    assert judge(document(finding(freedBy={"sizeBytes": 950})), more).freed_off_share == pytest.approx(0.5)
    assert judge(document(finding(freedBy={"sizeBytes": None})), STUCK).freed_off_share is None
    assert judge(document(finding(freedBy=None)), STUCK).freed_off_share is None


def test_only_the_first_finding_counts() -> None:
    judged = judge(document(finding(kind="FileCache", memoryClass="FileCache"), finding()), STUCK)
    assert not judged.is_right


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kind": "LargeClass"}, "kind is LargeClass, not UnreadSocket"),
        ({"memoryClass": "Shmem"}, "class is Shmem, not AllocPage"),
        ({"memoryClass": ""}, "class is empty, not AllocPage"),
        ({"owner": None}, "owner is another, or none"),
        ({"owner": {"kind": "Process", "name": "python[8]", "pid": 8}}, "owner is another, or none"),
        ({"owner": {"kind": "Process", "name": "python[7]", "pid": 7, "fds": [9]}}, "owner is another, or none"),
    ],
)
def test_each_part_of_a_finding_can_be_wrong(changes: dict[str, Any], fault: str) -> None:
    assert judge(document(finding(**changes)), STUCK).faults == (fault,)


def test_a_document_without_findings_is_wrong() -> None:
    assert judge(document(leak_detected=None), STUCK).faults == ("LeakDetected is not said", "there is no finding")


@pytest.mark.parametrize(
    ("answer", "said", "is_right"),
    [
        (Answer.LEAK, "True", True),
        (Answer.LEAK, "Unknown", True),
        (Answer.LEAK, "False", False),
        (Answer.HARMLESS, "True", False),
        (Answer.HARMLESS, "Unknown", True),
        (Answer.HARMLESS, "False", True),
        (Answer.OPEN, "True", True),
        (Answer.OPEN, "False", True),
    ],
)
def test_the_answer_must_fit_the_load(answer: Answer, said: str, is_right: bool) -> None:
    judged = judge(document(finding(), leak_detected=said), dataclasses.replace(STUCK, answer=answer))
    assert judged.is_right == is_right
    assert judged.denies_leak == (answer is Answer.LEAK and said == "False")
    assert not judged.invents_leak


@pytest.mark.parametrize(
    ("owner", "truth"),
    [
        ({"kind": "Container", "containerId": CONTAINER}, {"container_id": CONTAINER}),
        ({"kind": "Node", "processes": 60}, {"processes": 60}),
        ({"kind": "SlabCache", "name": "kmalloc-cg-4k"}, {"names": ("kmalloc-cg-4k",)}),
    ],
)
def test_owners_that_are_no_process_are_recognized(owner: dict[str, Any], truth: dict[str, Any]) -> None:
    without_process = dataclasses.replace(STUCK, pids=(), fds=())
    said = document(finding(owner=owner))
    assert judge(said, dataclasses.replace(without_process, **truth)).is_right
    assert not judge(said, without_process).is_right


def test_a_kind_that_exists_once_on_a_node_needs_no_owner() -> None:
    truth = PlantedTruth(Answer.HARMLESS, ("UnusedHugePages",), ("Hugetlb",), 1_000, owning_kinds=("UnusedHugePages",))
    said = finding(kind="UnusedHugePages", memoryClass="Hugetlb", owner=None)
    assert judge(document(said, leak_detected="False"), truth).is_right


def test_growth_is_compared_by_its_rate() -> None:
    truth = dataclasses.replace(STUCK, size_bytes=0, bytes_per_second=100)
    assert judge(document(finding(trend={"bytesPerSecond": 90.0})), truth).off_share == pytest.approx(0.1)
    assert judge(document(finding(sizeBytes=1_200)), truth).off_share == pytest.approx(0.2)


@pytest.mark.parametrize(("said", "is_right"), [("True", False), ("Unknown", True), ("False", True)])
def test_any_finding_is_right_for_a_healthy_load_but_no_leak(said: str, is_right: bool) -> None:
    judged = judge(document(finding(kind="FileCache"), leak_detected=said), HEALTHY)
    assert judged.is_right == is_right
    assert judged.invents_leak != is_right
    assert judged.off_share is None


def test_one_denied_or_invented_leak_is_too_many() -> None:
    right = judge(document(finding()), STUCK)
    wrong = judge(document(), STUCK)
    denied = judge(document(finding(), leak_detected="False"), STUCK)
    invented = judge(document(), HEALTHY)

    def is_good(*judgements: Judgement) -> bool:
        return outcome(judgements).is_good(0.95)

    assert is_good(*[right] * 20, wrong)
    assert not is_good(*[right] * 18, wrong)
    assert not is_good(*[right] * 99, denied)
    assert not is_good(*[right] * 99, invented)
    assert not is_good()
