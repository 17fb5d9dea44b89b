"""The report for users: complete, the answer first, at most 100 columns wide."""

from memdiag_api.evidence import (
    AllocationUnit,
    Census,
    CensusShare,
    Check,
    CompoundBlocks,
    Ledger,
    LedgerLine,
    Need,
    NeedState,
    TraceCounters,
)
from memdiag_node.render.findings import ANSWER_LINES
from memdiag_node.render.report import render_report
from support.evidence import MIB, evidence_with
from support.report_records import machine, oom_kills, removed_cgroups, runs


def test_the_answer_comes_first_and_every_part_follows() -> None:
    lines = render_report(evidence_with(holders=2, stacks=2)).splitlines()
    assert lines[0] == "memdiag: node1, Linux 6.18.0, 2 CPUs, 24.0 GiB, traced for 60.1 s"
    assert lines[2].startswith("PinnedByUnreadSocket (confidence: high")
    assert "5.80 GiB" in lines[3]
    headings = [line.split("   ")[0] for line in lines if line[:1].isupper()]
    assert headings[1:] == ["WHERE THE MEMORY IS", "WHO HOLDS IT", "WHICH CALL STACKS", "WHAT THIS COVERS"]


def test_the_machine_cgroups_and_earlier_runs_follow_without_moving_the_answer() -> None:
    evidence = evidence_with(findings=16)
    now, *earlier = runs()
    more = {
        "machine": machine(),
        "removed_cgroups": removed_cgroups(),
        "oom_kills": oom_kills(),
        "summary": now,
        "history": earlier,
    }
    report = render_report(evidence.model_copy(update=more))
    before, after = render_report(evidence).split("\n\n"), report.split("\n\n")
    added = [part for part in after if part not in before]
    assert after[:2] == before[:2]
    assert len("\n\n".join(after[:2]).splitlines()) <= ANSWER_LINES == 10
    assert after[-1] == before[-1]
    assert [part.split("   ")[0] for part in added] == [
        "REMOVED MEMORY CGROUPS",
        "KILLED FOR LACK OF MEMORY",
        "THE MACHINE",
        "VMALLOC BY CALLER",
        "ALLOCATIONS BY SOURCE LINE",
        "PAGE OWNER",
        "SINCE EARLIER RUNS",
    ]
    assert [part for part in after if part not in added] == before
    assert max(map(len, report.splitlines())) <= 100


def test_a_holder_has_its_size_owner_and_kind() -> None:
    lines = render_report(evidence_with()).splitlines()
    at = next(number for number, line in enumerate(lines) if "nginx[4711]" in line and ">=60s" in line)
    assert lines[at].split() == ["5.66", "GiB", "-", "3.00", "MiB", "125", "MiB", ">=60s", "nginx[4711]", "11"]
    assert lines[at + 1].strip() == "TCP ESTABLISHED 10.244.0.7:80 < 10.244.0.9:51234"


def test_a_stack_says_what_it_allocated() -> None:
    evidence = evidence_with(stacks=1)
    assert evidence.trace
    objects = evidence.stacks[0].model_copy(
        update={
            "memory_class": "Slab",
            "unit": AllocationUnit.OBJECTS,
            "slab_cache": "kmalloc-64",
            "outstanding_bytes": 12 << 20,
            "outstanding_blocks": 192_000,
            "outstanding_by_order": {},
        }
    )
    pages = objects.model_copy(update={"unit": AllocationUnit.PAGES, "outstanding_by_order": {"0": 3072}})
    trace = evidence.trace.model_copy(update={"object_classes": ["Slab"]})
    report = render_report(evidence.model_copy(update={"stacks": [objects, pages], "trace": trace}))
    words = " ".join(report.split())
    assert "#1 12.0 MiB outstanding (kmalloc-64, 192,000 objects) of Slab, not allocpage, growing, 5.00 MiB/s" in words
    assert "(kmalloc-64, 3072 of order 0) of Slab, not allocpage, also listed as objects, growing" in words
    assert max(map(len, report.splitlines())) <= 100


def test_no_line_is_wider_than_100_columns_even_with_long_names() -> None:
    report = render_report(evidence_with(holders=20, stacks=5, comm="a-very-long-name" * 16))
    assert max(map(len, report.splitlines())) <= 100


def test_a_missing_need_is_reported_with_its_remedy() -> None:
    need = Need(
        name="tracefs",
        state=NeedState.MISSING,
        checks=[Check.ALLOC_PAGE_TRACE],
        detail="not there.",
        remedy="Mount it.",
    )
    assert "  missing: tracefs: not there. Mount it." in render_report(
        evidence_with().model_copy(update={"needs": [need]})
    )


def test_the_ledger_shows_each_part_and_says_why_the_rest_can_be_below_zero() -> None:
    ledger = Ledger(
        alloc_page_bytes=100 * MIB,
        lines=[LedgerLine(name="Sockets", size_bytes=104 * MIB), LedgerLine(name="Pipes", size_bytes=0)],
        unexplained_bytes=-4 * MIB,
    )
    lines = render_report(evidence_with().model_copy(update={"ledger": ledger})).splitlines()
    at = lines.index("WHAT HOLDS ALLOCPAGE   100 MiB in total")
    assert [line.split() for line in lines[at + 1 : at + 3]] == [
        ["Sockets", "104", "MiB", "104.0", "%"],
        ["Unexplained", "-4.00", "MiB", "-4.0", "%"],
    ]
    assert "below zero" in lines[at + 3]


def test_the_census_names_blocks_and_charges_that_are_large() -> None:
    census = Census(
        compound=[
            CompoundBlocks(order=2, blocks=1, size_bytes=16384, held_bytes=0),
            CompoundBlocks(order=3, blocks=64, size_bytes=2 * MIB, held_bytes=MIB),
        ],
        charged=[
            CensusShare(container_id="c0ffee" * 8, single_bytes=3 * MIB, compound_bytes=MIB),
            CensusShare(container_id="", single_bytes=MIB, compound_bytes=0, held_bytes=0),
        ],
        scanned_share=0.5,
    )
    lines = render_report(evidence_with().model_copy(update={"census": census})).splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("KERNEL PAGES BY BLOCK AND CHARGE"))
    assert [line.split() for line in lines[at + 1 : at + 6]] == [
        ["FRAMES", "SIZE", "IN", "KNOWN", "HOLDERS"],
        ["blocks", "of", "order", "3", "2.00", "MiB", "1.00", "MiB"],
        ["charged", "to", "container", "c0ffeec0ffee", "4.00", "MiB", "-"],
        ["charged", "to", "no", "container", "1.00", "MiB", "0", "B"],
        ["only", "50%", "of", "the", "page", "frames", "were", "scanned", "in", "time"],
    ]


def test_an_interrupted_run_says_so() -> None:
    evidence = evidence_with()
    window = evidence.window.model_copy(update={"interrupted": True})
    assert "Ended early: 60 s were requested" in render_report(evidence.model_copy(update={"window": window}))


def test_what_the_trace_lost_or_skipped_is_reported() -> None:
    evidence = evidence_with()
    assert evidence.trace
    said_nothing = render_report(evidence)
    counters = TraceCounters(
        events_sampled_out=9, large_sampled_out=4, sampled_share=0.5, unnamed_blocks=7, lost_cgroups=3
    )
    report = render_report(
        evidence.model_copy(update={"trace": evidence.trace.model_copy(update={"counters": counters})})
    )
    for text in ("4 blocks of several pages were skipped", "7 blocks were recorded without their process"):
        assert text in " ".join(report.split())
        assert text not in " ".join(said_nothing.split())
    assert "lost: 3 times a memory cgroup did not fit in a table" in report


def test_what_the_object_trace_recorded_and_lost_is_reported() -> None:
    evidence = evidence_with()
    assert evidence.trace
    counters = TraceCounters(
        recorded_objects=900,
        lost_objects=5,
        missed_object_runs=8,
        unresolved_objects=6,
        unseen_frees=7,
        object_program_seconds=0.25,
    )
    trace = evidence.trace.model_copy(update={"counters": counters})
    words = " ".join(render_report(evidence.model_copy(update={"trace": trace})).split())
    assert "objects: 900 slab objects, vmalloc areas and per-CPU allocations were recorded; 7 of them" in words
    assert "used 0.25 s of CPU time" in words
    assert "lost: 5 objects did not fit in a table" in words
    assert "lost: 8 runs of a program for objects were skipped by the kernel" in words
    assert "lost: 6 recorded slab objects are in no slab that could be read" in words
    assert "objects:" not in render_report(evidence)
