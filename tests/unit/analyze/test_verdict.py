"""Every rule of the verdict, a row for each way that the evidence can look."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from memdiag_api.evidence import (
    Breakdown,
    Census,
    CensusShare,
    Check,
    CompoundBlocks,
    Confidence,
    Context,
    FilledBy,
    Holder,
    HolderKind,
    Owner,
    Queue,
    Socket,
    Stack,
    Trend,
    Verdict,
    VerdictKind,
)
from memdiag_node.analyze.stacks import NO_STACK
from memdiag_node.analyze.verdict import MIB, Findings, Thresholds, decide_verdict

GIB = 1024 * MIB
THRESHOLDS = Thresholds()
IDLE = Findings(
    mem_total_bytes=16 * GIB,
    checks=tuple(Check),
    interrupted=False,
    window_seconds=60.0,
    breakdown=Breakdown(mem_total_bytes=16 * GIB, classes=[], alloc_page_bytes=300 * MIB, alloc_page_error_bytes=0),
)


def holder(
    *, pid: int | None = 4711, fd: int = 11, pinned: int = 6 * GIB, stuck: float | None = 60.0, complete: bool = True
) -> Holder:
    owners = [Owner(pid=pid, comm="nginx", fds=[fd])] if pid is not None else []
    queue = Queue(
        name="receive", packets=1, unread_bytes=3 * MIB, charge_bytes=3 * MIB, pinned_bytes=pinned, complete=complete
    )
    return Holder(
        kind=HolderKind.SOCKET,
        owners=owners,
        owners_total=len(owners),
        unowned_reason="" if owners else "not yet accepted",
        unread_bytes=3 * MIB,
        pinned_bytes=pinned,
        stuck_seconds=stuck,
        socket=Socket(family="IPv4", protocol="TCP", queues=[queue]),
    )


def stack(*, outstanding: int, trend: Trend, frames: Sequence[str] = ("skb_page_frag_refill+0x10",)) -> Stack:
    return Stack(
        frames=list(frames),
        context=Context.PROCESS,
        outstanding_bytes=outstanding,
        outstanding_blocks=1,
        trend=trend,
    )


def verdict(**changes: object) -> Verdict:
    return decide_verdict(replace(IDLE, **changes), THRESHOLDS)  # type: ignore[arg-type]  # the table's rows name fields


def test_an_idle_node_has_no_leak() -> None:
    answer = verdict()
    assert (answer.kind, answer.confidence) == (VerdictKind.NO_LEAK, Confidence.HIGH)
    assert "allocpage has 300 MiB" in answer.sentence


def test_a_stuck_socket_that_pins_much_is_the_suspect() -> None:
    answer = verdict(holders=[holder()])
    assert (answer.kind, answer.confidence) == (VerdictKind.PINNED_BY_UNREAD_SOCKET, Confidence.HIGH)
    assert answer.sentence == "nginx[4711] fd 11: 3.00 MiB unread for at least 60 s pins 6.00 GiB."
    assert "why nginx[4711] does not read fd 11" in answer.advice
    assert (answer.holder, answer.suspect_bytes) == (0, 6 * GIB)


@pytest.mark.parametrize(
    ("name", "socket"),
    [
        ("it is read", holder(stuck=None)),
        ("it was looked at for an instant only", holder(stuck=0.5)),
        ("it pins little", holder(pinned=15 * MIB)),
    ],
)
def test_a_socket_is_no_suspect_when(name: str, socket: Holder) -> None:
    assert verdict(holders=[socket]).kind is VerdictKind.NO_LEAK, name


def test_many_small_stuck_sockets_of_one_process_are_judged_together() -> None:
    answer = verdict(holders=[holder(fd=fd, pinned=9 * MIB) for fd in (7, 8, 9)])
    assert answer.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert answer.sentence.startswith("nginx[4711] fd 7 and 2 more of its sockets: 9.00 MiB unread")
    assert answer.suspect_bytes == 27 * MIB


def test_stuck_sockets_of_different_processes_are_judged_apart() -> None:
    assert verdict(holders=[holder(pid=pid, pinned=9 * MIB) for pid in (1, 2, 3)]).kind is VerdictKind.NO_LEAK


def test_the_process_that_pins_most_is_named_first() -> None:
    answer = verdict(
        holders=[holder(pid=1, pinned=100 * MIB), holder(pid=2, pinned=60 * MIB), holder(pid=2, pinned=60 * MIB)]
    )
    assert (answer.holder, answer.suspect_bytes) == (1, 120 * MIB)


def test_a_socket_that_nobody_holds_is_named_by_its_reason() -> None:
    assert "not yet accepted" in verdict(holders=[holder(pid=None)]).sentence


def test_a_queue_that_could_not_be_read_whole_lowers_the_confidence() -> None:
    assert verdict(holders=[holder(complete=False)]).confidence is Confidence.MEDIUM


def test_the_join_is_among_the_reasons() -> None:
    filled = holder().model_copy(update={"filled_by": [FilledBy(stack=0, size_bytes=5 * GIB, share=0.97)]})
    answer = verdict(holders=[filled], stacks=[stack(outstanding=5 * GIB, trend=Trend.GROWING)])
    assert "97% of what it pins was allocated in the window through skb_page_frag_refill+0x10" in answer.reasons
    assert answer.stack == 0


@pytest.mark.parametrize(
    ("outstanding", "trend", "kind"),
    [
        (100 * MIB, Trend.GROWING, VerdictKind.GROWING_KERNEL_ALLOCATION),
        (100 * MIB, Trend.CHURN, VerdictKind.NO_LEAK),
        (100 * MIB, Trend.PINNED, VerdictKind.NO_LEAK),
        (15 * MIB, Trend.GROWING, VerdictKind.NO_LEAK),
    ],
)
def test_a_growing_stack_is_a_leak_from_a_size_on(outstanding: int, trend: Trend, kind: VerdictKind) -> None:
    assert verdict(stacks=[stack(outstanding=outstanding, trend=trend)]).kind is kind


@pytest.mark.parametrize("frames", [("unnamed#0a1b2c3d", "unnamed#4e5f6071"), NO_STACK, ()])
def test_what_has_no_name_is_not_called_growing_and_leaves_doubt(frames: Sequence[str]) -> None:
    answer = verdict(stacks=[stack(outstanding=5 * GIB, trend=Trend.GROWING, frames=frames)])
    assert (answer.kind, answer.confidence) == (VerdictKind.NO_LEAK, Confidence.LOW)


@pytest.mark.parametrize(
    ("unnamed_bytes", "named", "confidence"),
    [
        (4096, 0, Confidence.LOW),  # the kernel gives no names: a leak may be split over many stacks
        (4096, 1, Confidence.HIGH),
        (15 * MIB, 1, Confidence.HIGH),
        (20 * MIB, 1, Confidence.LOW),
    ],
)
def test_no_leak_is_not_sure_without_names(unnamed_bytes: int, named: int, confidence: Confidence) -> None:
    stacks = [stack(outstanding=unnamed_bytes // 2, trend=Trend.UNCLEAR, frames=(f"unnamed#{n}",)) for n in range(2)]
    stacks += [stack(outstanding=4096, trend=Trend.UNCLEAR)] * named
    answer = verdict(stacks=stacks)
    assert (answer.kind, answer.confidence) == (VerdictKind.NO_LEAK, confidence)


def test_a_growing_stack_is_named_by_its_innermost_name() -> None:
    frames = ("unnamed#0a1b2c3d", "skb_page_frag_refill+0x10")
    answer = verdict(stacks=[stack(outstanding=5 * GIB, trend=Trend.GROWING, frames=frames)])
    assert answer.sentence.startswith("Allocations through skb_page_frag_refill+0x10 grow")


@pytest.mark.parametrize(
    ("alloc_page", "explained", "kind"),
    [
        (2 * GIB, 0, VerdictKind.LARGE_BUT_UNEXPLAINED),
        (2 * GIB, 1 * GIB, VerdictKind.NO_LEAK),
        (1 * GIB, 0, VerdictKind.NO_LEAK),
    ],
)
def test_large_allocpage_is_reported_when_nobody_is_known_to_hold_it(
    alloc_page: int, explained: int, kind: VerdictKind
) -> None:
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": alloc_page})
    assert verdict(breakdown=large, explained_bytes=explained).kind is kind


def test_many_small_stuck_sockets_of_one_process_count_together() -> None:
    """The largest are listed one by one, the others summed up: a leak may be spread over them."""
    single = holder(pinned=MIB)
    many = holder(pinned=200 * MIB).model_copy(
        update={"summed": 999, "socket": None, "owners": [Owner(pid=4711, comm="nginx")]}
    )
    found = verdict(holders=(many, single))
    assert (found.kind, found.holder, found.suspect_bytes) == (VerdictKind.PINNED_BY_UNREAD_SOCKET, 1, 201 * MIB)
    assert found.sentence.startswith("nginx[4711] fd 11 and 999 more of its sockets: ")
    alone = verdict(holders=(many,))
    assert alone.sentence.startswith("nginx[4711] 999 of its sockets: ")


def test_a_large_remainder_says_where_at_most_it_can_be() -> None:
    census = Census(
        compound=[
            CompoundBlocks(order=3, blocks=0, size_bytes=5 * GIB, held_bytes=3 * GIB),
            CompoundBlocks(order=4, blocks=0, size_bytes=GIB, held_bytes=GIB),
        ],
        charged=[
            CensusShare(container_id="c0ffee" * 8, single_bytes=GIB, compound_bytes=GIB, held_bytes=0),
            CensusShare(container_id="", single_bytes=4 * GIB, compound_bytes=0, held_bytes=0),
        ],
    )
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": 4 * GIB})
    assert verdict(breakdown=large, census=census).reasons[1:] == [
        "at most 2.00 GiB of it are charged to container c0ffeec0ffee and in no known holder",
        "at most 2.00 GiB of it are blocks of order 3 and in no known holder",
    ]
    unplaced = census.model_copy(
        update={"compound": [CompoundBlocks(order=3, blocks=0, size_bytes=GIB)], "charged": None}
    )
    assert len(verdict(breakdown=large, census=unplaced).reasons) == 1


def test_without_any_check_it_is_inconclusive() -> None:
    assert verdict(checks=(), breakdown=None).kind is VerdictKind.INCONCLUSIVE


def test_a_narrower_look_is_less_sure() -> None:
    assert verdict(checks=(Check.BREAKDOWN,)).confidence is Confidence.LOW
    assert verdict(interrupted=True).confidence is Confidence.MEDIUM


def test_what_matters_grows_with_the_machine() -> None:
    assert THRESHOLDS.suspect_bytes(2 * GIB) == 16 * MIB
    assert THRESHOLDS.suspect_bytes(1000 * GIB) == 1000 * GIB // 1000


def test_blocks_that_a_process_s_sockets_share_count_once() -> None:
    answer = verdict(
        holders=[holder(fd=7, pinned=60 * MIB), holder(fd=8, pinned=60 * MIB)],
        pinned_together_bytes=lambda indexes: 70 * MIB if set(indexes) == {0, 1} else 0,
    )
    assert answer.suspect_bytes == 70 * MIB
    assert "pins 70.0 MiB" in answer.sentence
