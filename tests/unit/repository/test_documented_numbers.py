"""Numbers in the docs match the code."""

import re
from typing import Any

import pytest

from local_cluster.paths import PROJECT
from memdiag_node.breakdown import reading
from memdiag_node.findings.thresholds import MIB, Thresholds
from memdiag_node.run import MAX_SINGLE_SOCKETS
from memdiag_node.sockets import scanner as holder_sockets
from memdiag_node.sockets import source as sockets
from memdiag_node.trace.idle_entries import CROWDED
from memdiag_node.trace.objects import tables as object_tables
from memdiag_node.trace.pages import page_trace
from memdiag_node.trace.pages import tables as page_tables
from memdiag_node.trace.settings import TraceSettings
from memdiag_node.walker import walker as queues
from memdiag_node.walker import walks
from memdiag_operator.config import SweepSettings
from memdiag_operator.loop import sweep
from memdiag_operator.status import progress

WORDS = {"four": 4, "five": 5, "nine": 9, "ten": 10}
THRESHOLDS, TRACE = Thresholds(), TraceSettings(duration_seconds=60)


@pytest.mark.parametrize(
    ("page", "sentence", "value"),
    [
        ("observability", r"asked for all of it every (\S+) minutes", sweep.RELIST_SECONDS / 60),
        ("reliability", r"and everything every (\S+) minutes", sweep.RELIST_SECONDS / 60),
        ("reliability", r"everything every (\S+) seconds while a run is on", SweepSettings().active_seconds),
        ("reliability", r"every (\S+) seconds otherwise", SweepSettings().idle_seconds),
        ("holders", r"walks for (\S+) s at most", holder_sockets._DEFAULT_BUDGET_SECONDS),
        ("holders", r"walked again, (\S+) times at most", walks.ATTEMPTS),
        ("holders", r"The (\S+) sockets that pin most", MAX_SINGLE_SOCKETS),
        ("holders", r"the first (\S+) packets that waited", queues.IDENTITIES),
        ("holders", r"up to (\S+) sockets with one unread packet", sockets.WATCHED),
        ("verdicts", r"the first (\S+) packets", queues.IDENTITIES),
        ("verdicts", r"suspect size \| (\S+) MiB", THRESHOLDS.suspect_floor_bytes / MIB),
        ("verdicts", r"suspect size \| \S+ MiB, or (\S+) %", THRESHOLDS.suspect_share * 100),
        ("verdicts", r"large size \| (\S+) MiB", THRESHOLDS.large_floor_bytes / MIB),
        ("verdicts", r"large size \| \S+ MiB, or (\S+) %", THRESHOLDS.large_share * 100),
        ("conditions", r"during a trace (\S+), in one longer", progress.USUAL_TICKS),
        ("conditions", r"longer than (\S+) minutes", progress.USUAL_TICKS * progress.LONG_TICK_SECONDS / 60),
        ("conditions", r"one every (\S+) seconds", progress.LONG_TICK_SECONDS),
        ("conditions", r"never less than (\S+) seconds apart", progress.MIN_TICK_SECONDS),
        ("trace", r"window is cut into (\S+) slices", TRACE.slices),
        ("trace", r"\((\S+) % of each CPU by default\)", TRACE.cpu_budget_share * 100),
        ("trace", r"([0-9,]+) stacks at a time", page_trace._STACKS),
        ("trace", r"\(([0-9,]+) at a time, likewise\)", page_tables.CLASSES - page_tables.FIRST_CLASS),
        ("trace", r"The table is (\S+) % of memory", 100 * 2 / 4096),
        ("trace", r"If more than ([0-9,]+) objects are outstanding", CROWDED * object_tables.OBJECTS),
        ("trace", r"aligned to (\S+) bytes or less", object_tables.SPARSEST_BYTES),
        ("trace", r"up to all from (\S+) bytes on", object_tables.DENSEST_BYTES),
        ("trace", r"One in (\S+) is recorded", object_tables.DENSEST_BYTES / object_tables.SPARSEST_BYTES),
        ("breakdown", r"(\S+) are\s+taken, 10 ms apart", reading.READINGS),
        ("breakdown", r"taken, (\S+) ms apart", reading.READING_GAP_SECONDS * 1000),
    ],
)
def test_a_documented_number_matches_the_code(page: str, sentence: str, value: Any) -> None:
    text = " ".join((PROJECT / f"docs/{page}.md").read_text().split())
    found = re.findall(sentence, text)
    assert found, f"docs/{page}.md no longer says {sentence!r}"
    for number in found:
        assert (WORDS.get(number) or float(number.replace(",", ""))) == pytest.approx(value, rel=0.03)
