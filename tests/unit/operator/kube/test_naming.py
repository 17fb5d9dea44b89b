"""Names follow from identities."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_operator.kube import naming

DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
names = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,250}[a-z0-9])?", fullmatch=True)


@given(names, names)
def test_a_child_name_is_a_host_name(diagnosis: str, node: str) -> None:
    name = naming.child_name(diagnosis, "uid", "run", node)
    assert len(name) <= 63
    assert DNS_NAME.fullmatch(name)


def test_the_same_child_has_the_same_name() -> None:
    assert naming.child_name("a", "uid", "run", "node") == naming.child_name("a", "uid", "run", "node")


@pytest.mark.parametrize(
    "other", [("b", "run", "node"), ("uid", "run2", "node"), ("uid", "run", "node2"), ("uidrun", "", "node")]
)
def test_another_child_has_another_name(other: tuple[str, str, str]) -> None:
    assert naming.child_name("a", *other) != naming.child_name("a", "uid", "run", "node")


def test_a_rerun_has_an_id_of_its_own_even_when_asked_for_with_the_same_words() -> None:
    first = naming.run_id("uid", "now", None)
    second = naming.run_id("uid", "now", first)
    assert len({first, second, naming.run_id("uid", "", None)}) == 3


def test_long_names_make_valid_event_names() -> None:
    name = naming.event_name("a" * 242 + ".b" + "c" * 9, "uid", "run", "Started")
    assert len(name) <= 253
    assert ".." not in name


def test_a_runs_events_sort_as_its_story_goes() -> None:
    story = ["Started", "Running", "LeakFound", "PinnedByUnreadSocket"]
    names = [naming.event_name("a", "uid", "run", reason) for reason in story]
    assert names == sorted(names)
    assert len(set(names)) == len(story)
