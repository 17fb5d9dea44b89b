"""Clues in the evidence document and in the report."""

from memdiag_api import limits
from memdiag_node.census.clues.clues import SubjectClues, clues_record
from memdiag_node.census.clues.frame_clues import FrameFindings, OrderFindings, frame_use_records
from memdiag_node.census.clues.words import Rank, WordClue, best_clues
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.render.clues import clues_lines

MIB = 1 << 20
CALLBACK = WordClue(Rank.SYMBOL, 24, 0.92, "leaky_callback [leaky]", "leaky")
LIST = WordClue(Rank.ADDRESS, 0, 1.0, "objects of the same cache (kmalloc-64), as a list does")


def test_the_best_clue_is_first_and_a_text_is_there_once() -> None:
    weaker = WordClue(Rank.SYMBOL, 32, 0.4, CALLBACK.text, "leaky")
    typed = WordClue(Rank.TYPED_OBJECT, 8, 1.0, "objects of filp (open files)")
    assert best_clues([LIST, weaker, typed, CALLBACK]) == [CALLBACK, typed, LIST]


def test_what_names_something_comes_first_and_then_the_larger_part() -> None:
    small = SubjectClues("kmalloc-8", 1_000, 8_000, 1_000, (CALLBACK,))
    large = SubjectClues("kmalloc-64", 610_000, 610_000 * 64, 1_024, (CALLBACK, LIST))
    record = clues_record([small, large], None, sees_symbols=True)
    assert [(one.subject, one.offset_bytes) for one in record.clues] == [
        ("kmalloc-64", 24),
        ("kmalloc-8", 24),
        ("kmalloc-64", 0),
    ]
    assert (record.clues[0].module, record.clues[0].share, record.clues[0].sampled) == ("leaky", 0.92, 1024)
    (first, *_) = clues_lines(record)[1:]
    assert first == ("  34.3 MiB: 92.0 % of 610,000 objects of kmalloc-64 point at +24 to leaky_callback [leaky]")


def test_the_number_of_clues_and_the_length_of_their_texts_are_bounded() -> None:
    long = WordClue(Rank.SYMBOL, 0, 1.0, "x" * 5_000, "m" * 5_000)
    record = clues_record([SubjectClues(f"c{n}", 1, 64, 1, (long,)) for n in range(50)], None, sees_symbols=True)
    assert len(record.clues) == limits.MAX_CLUES


def test_properties_of_frames_are_shares_and_charges_have_the_container() -> None:
    order = OrderFindings(
        "frames of order 3", 5_000, 5_000 * 32_768, 1_000, (("in a page pool", 900), ("private data", 3)),
        ((77, 600), (78, 100), (0, 100)), (CALLBACK,),
    )  # fmt: skip
    found = FrameFindings((order,), {77: ContainerIdentity("c0ffee" * 10, "a-pod")})
    assert [(use.property, use.share) for use in frame_use_records(found)] == [
        ("in a page pool", 0.9),
        ("charged to container c0ffeec0ffee", 0.6),
        ("charged to a memory cgroup", 0.2),
    ]
    record = clues_record([], found, sees_symbols=False)
    assert [(one.subject, one.objects, one.size_bytes) for one in record.clues] == [
        ("frames of order 3", 5_000, 5_000 * 32_768)
    ]
    lines = clues_lines(record)
    assert "  90.0 % of the frames of order 3: in a page pool" in lines
    assert "only typed objects" in lines[-1]
    assert all(len(line) <= 100 for line in lines)


def test_nothing_is_said_without_a_clue() -> None:
    assert clues_lines(clues_record([], None, sees_symbols=False)) == []
