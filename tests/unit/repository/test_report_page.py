"""The text report in the docs is that of the code."""

import re

import pytest

from local_cluster.paths import PROJECT
from memdiag_node.render import allocators, cgroups, owners
from memdiag_node.render.allocators import allocators_parts
from memdiag_node.render.cgroups import oom_kills_lines, removed_cgroups_lines
from memdiag_node.render.history import history_lines
from memdiag_node.render.machine import machine_lines
from support.report_records import machine, oom_kills, removed_cgroups, runs


def page(name: str) -> str:
    return (PROJECT / f"docs/{name}.md").read_text()


def headings_of_the_code() -> set[str]:
    """The start of every line that is written as a heading: capitals before three spaces, or alone in a list."""
    found: set[str] = set()
    for path in (PROJECT / "node_runner/memdiag_node/render").glob("*.py"):
        text = path.read_text()
        found.update(re.findall(r'"([A-Z]{2,}(?: [A-Z]+)*) {3}\S', text))
        found.update(re.findall(r'\[\s*"([A-Z]{2,}(?: [A-Z]+)*)",\s+\*', text))
    return found


def test_every_section_has_its_row_and_no_other_has() -> None:
    rows = re.findall(r"^\| ([A-Z ]+) \|", page("report"), re.MULTILINE)
    assert len(rows) == len(set(rows)) > 20
    assert set(rows) == headings_of_the_code()


@pytest.mark.parametrize(
    ("name", "sections"),
    [
        ("report", [removed_cgroups_lines(removed_cgroups()), oom_kills_lines(oom_kills())]),
        ("machine", [machine_lines(machine(), page_bytes=4096), *allocators_parts(machine())]),
        ("history", [history_lines(runs()[0], runs()[1:])]),
    ],
)
def test_an_example_is_what_the_code_writes(name: str, sections: list[list[str]]) -> None:
    text = "\n\n".join("\n".join(lines) for lines in sections)
    assert f"```\n{text}\n```\n" in page(name)


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        (r"the (\d+) largest owners of each class", owners._OWNERS_SHOWN),
        (r"with at least (\S+) % of memory", owners._CLASS_SHARE * 100),
        (r"accounts of the (\d+) largest", owners._CONTAINERS_SHOWN),
        (r"the (\d+) places where they were", cgroups._PLACES_SHOWN),
        (r"the last (\d+) processes that the kernel killed", cgroups._KILLS_SHOWN),
        (r"the (\d+) kernel functions with most vmalloc", allocators._SHOWN),
        (r"the (\d+) largest lines of kernel source", allocators._SHOWN),
        (r"the (\d+) largest call stacks, if", allocators._STACKS_SHOWN),
    ],
)
def test_a_bound_of_a_section_is_that_of_the_code(sentence: str, value: float) -> None:
    (found,) = re.findall(sentence, page("report"))
    assert float(found) == pytest.approx(value)
