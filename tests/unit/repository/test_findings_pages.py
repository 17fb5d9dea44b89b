"""docs/findings.md and docs/verdicts.md follow the code."""

import re

import pytest

from local_cluster.paths import PROJECT
from memdiag_api.evidence import VerdictKind
from memdiag_api.findings import FindingKind
from memdiag_node.findings.thresholds import GIB, KIB, MIB, Thresholds
from memdiag_node.findings.verdict import LEAK_DETECTED

PARTS = ("Meaning", "Measured", "Not seen", "What to do")
THRESHOLDS = Thresholds()


def page(name: str) -> str:
    return (PROJECT / "docs" / f"{name}.md").read_text()


def test_every_kind_of_finding_has_its_page_and_no_other_has() -> None:
    headings = re.findall(r"^## (\w+)$", page("findings"), re.MULTILINE)
    assert headings == sorted(set(headings), key=headings.index)
    assert set(headings) == set(FindingKind)


@pytest.mark.parametrize("kind", FindingKind)
def test_a_page_says_what_it_means_how_it_is_measured_what_is_not_seen_and_what_to_do(kind: FindingKind) -> None:
    text = page("findings").split(f"## {kind}\n")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^- \*\*(.+?)\*\*: ", text, re.MULTILINE)) == PARTS


def test_the_table_of_verdicts_is_that_of_the_code() -> None:
    rows = re.findall(r"^\| `(\w+)` \| .+ \| (True|False|Unknown) \|$", page("verdicts"), re.MULTILINE)
    assert dict(rows) == {kind.value: LEAK_DETECTED[kind].value for kind in VerdictKind}


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        (r"notable size \| (\S+) MiB", THRESHOLDS.notable_floor_bytes / MIB),
        (r"notable size \| \S+ MiB, or (\S+) %", THRESHOLDS.notable_share * 100),
        (r"unexplained AllocPage \| (\S+) GiB", THRESHOLDS.unexplained_ceiling_bytes / GIB),
        (r"stuck for \| (\S+) s", THRESHOLDS.stuck_floor_seconds),
        (r"leak age \| (\S+) s", THRESHOLDS.leak_age_seconds),
        (r"slow drain \| (\S+) s", THRESHOLDS.slow_drain_seconds),
        (r"growth per day \| (\S+) MiB", THRESHOLDS.growth_per_day_bytes / MIB),
        (r"exhaustion time \| (\S+) days", THRESHOLDS.exhaustion_seconds / 86_400),
        (r"object growth \| (\S+) KiB per minute", THRESHOLDS.object_growth_per_minute_bytes / KIB),
        (r"object growth \| .*, and (\S+) KiB at least", THRESHOLDS.object_growth_bytes(1) / KIB),
    ],
)
def test_the_thresholds_are_those_of_the_code(sentence: str, value: float) -> None:
    assert [float(number) for number in re.findall(sentence, page("verdicts"))] == [value]
