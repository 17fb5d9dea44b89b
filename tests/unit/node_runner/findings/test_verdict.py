"""Every rule of the verdict, with a row for each kind of evidence."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_api.evidence import (
    Breakdown,
    Census,
    CensusShare,
    Check,
    CompoundBlocks,
    Context,
    FilledBy,
    HeldBy,
    Holder,
    HolderKind,
    MemoryClass,
    Need,
    NeedState,
    Owner,
    Queue,
    ScanCoverage,
    Socket,
    Stack,
    SuspectScope,
    Trace,
    TraceCounters,
    Trend,
    Verdict,
    VerdictKind,
)
from memdiag_api.findings import Confidence
from memdiag_node.findings.doubts import Doubt
from memdiag_node.findings.draft import ranked
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.rules import find
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import MIB, Thresholds
from memdiag_node.findings.verdict import decide_verdict
from memdiag_node.holding import PACKET_STRUCT_BYTES, PINNED_DTYPE, Holding
from memdiag_node.trace.stacks import NO_STACK
from support.measurements import host_of, window_of

PAGE = 4096
GIB = 1024 * MIB
THRESHOLDS = Thresholds()
IDLE = Measurements(
    host=host_of(16 * GIB),
    window=window_of(60),
    checks=tuple(Check),
    needs=(),
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


def verdict(
    *,
    holders: Sequence[Holder] = (),
    blocks: Sequence[npt.NDArray[np.void]] = (),
    held_bytes: int = 0,
    window_seconds: float = 60,
    interrupted: bool = False,
    **changes: Any,
) -> Verdict:
    """The verdict on an idle node with these `changes`. `blocks`: those of each holder, if they matter."""
    measured = replace(
        IDLE,
        window=IDLE.window.model_copy(update={"traced_seconds": window_seconds, "interrupted": interrupted}),
        holdings=[
            Holding(one, blocks[index] if blocks else np.empty(0, PINNED_DTYPE)) for index, one in enumerate(holders)
        ],
        **changes,
    )
    situation = Situation(measured, THRESHOLDS, held_bytes)
    return decide_verdict(situation, ranked(find(situation)))


def test_an_idle_node_has_no_leak() -> None:
    answer = verdict()
    assert (answer.kind, answer.confidence) == (VerdictKind.NO_LEAK, Confidence.HIGH)
    assert "allocpage has 300 MiB" in answer.sentence


@pytest.mark.parametrize(
    ("object_classes", "traced", "untraced"),
    [
        ([], "pages", "slab objects, vmalloc areas and per-CPU objects were not traced"),
        (["Slab"], "pages and slab objects", "vmalloc areas and per-CPU objects were not traced"),
        (["Percpu", "Slab", "Vmalloc"], "pages, slab objects, vmalloc areas and per-CPU objects", ""),
    ],
)
def test_no_leak_says_of_what_no_call_stack_keeps_allocating(
    object_classes: list[str], traced: str, untraced: str
) -> None:
    trace = counters().model_copy(update={"object_classes": object_classes})
    answer = verdict(trace=trace)
    assert f"no call stack keeps allocating 16.4 MiB or more of {traced} that can leak;" in answer.sentence
    said = [reason for reason in answer.reasons if "not traced" in reason]
    assert said == ([f"{untraced}: they are judged by their size"] if untraced else [])
    assert answer.confidence is Confidence.HIGH


def test_a_stuck_socket_that_pins_much_is_the_suspect() -> None:
    answer = verdict(holders=[holder()])
    assert (answer.kind, answer.confidence) == (VerdictKind.PINNED_BY_UNREAD_SOCKET, Confidence.HIGH)
    assert answer.sentence == "nginx[4711] fd 11: 3.00 MiB unread for at least 60 s pins 6.00 GiB."
    assert "why nginx[4711] is not reading fd 11" in answer.advice
    assert (answer.holder, answer.suspect_bytes) == (0, 6 * GIB + PACKET_STRUCT_BYTES)


def with_heads(one: Holder, head_bytes: int) -> Holder:
    return one.model_copy(update={"head_bytes": head_bytes})


def test_heads_in_slab_are_part_of_what_a_stuck_socket_keeps() -> None:
    """Small datagrams: hardly any block of pages, 400 MiB of slab."""
    answer = verdict(holders=[with_heads(holder(pinned=2 * MIB), 400 * MIB)])
    assert answer.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert answer.sentence == "nginx[4711] fd 11: 3.00 MiB unread for at least 60 s pins 402 MiB."
    assert "2.00 MiB of it are blocks of pages, and 400 MiB are packets in slab, not allocpage" in (answer.reasons)
    assert answer.suspect_bytes == 402 * MIB + PACKET_STRUCT_BYTES


def test_the_suspect_is_who_keeps_most_with_its_heads() -> None:
    answer = verdict(
        holders=[holder(pid=1, fd=3, pinned=20 * MIB), with_heads(holder(pid=2, fd=4, pinned=0), 300 * MIB)]
    )
    assert (answer.holder, answer.suspect_bytes) == (1, 300 * MIB + PACKET_STRUCT_BYTES)


def test_heads_of_many_owners_forbid_a_no() -> None:
    answer = verdict(holders=[with_heads(holder(pid=pid, pinned=MIB), 9 * MIB) for pid in (1, 2, 3)])
    assert (answer.kind, answer.scope) == (VerdictKind.SUSPICIOUS_MEMORY, SuspectScope.NODE)
    assert "pins 30.0 MiB" in answer.sentence
    assert "3.00 MiB of it are blocks of pages, and 27.0 MiB are packets in slab, not allocpage" in (answer.reasons)


@pytest.mark.parametrize(
    ("name", "socket"),
    [
        ("it is read", holder(stuck=None, pinned=300 * MIB)),
        ("it was watched for an instant only", holder(stuck=0.5, pinned=300 * MIB)),
        ("it pins little", holder(pinned=15 * MIB)),
    ],
)
def test_a_socket_is_not_a_suspect_when(name: str, socket: Holder) -> None:
    assert verdict(holders=[socket]).kind is VerdictKind.NO_LEAK, name


def test_many_small_stuck_sockets_of_one_process_are_judged_together() -> None:
    answer = verdict(holders=[holder(fd=fd, pinned=9 * MIB) for fd in (7, 8, 9)])
    assert answer.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert answer.sentence.startswith("nginx[4711] fd 7 and 2 more of its sockets: 9.00 MiB unread")
    assert answer.suspect_bytes == 27 * MIB + 3 * PACKET_STRUCT_BYTES


def of(
    *, pid: int = 1, container: str = "", pod: str = "", pinned: int = 9 * MIB, comm: str = "worker", summed: int = 1
) -> Holder:
    """A stuck socket of a process in a container and a pod."""
    owner = Owner(pid=pid, comm=comm, fds=[3], container_id=container, pod_uid=pod)
    return holder(pinned=pinned).model_copy(update={"owners": [owner], "summed": summed})


def unowned(*, pinned: int, summed: int = 1) -> Holder:
    """Stuck sockets that no process holds."""
    return holder(pid=None, pinned=pinned).model_copy(update={"summed": summed})


WORKERS = [of(pid=100 + n, container="c0ffee" * 8, pod="pod-1", pinned=16 * MIB) for n in range(500)]


@pytest.mark.parametrize(
    ("holders", "scope", "suspect_bytes", "words"),
    [
        pytest.param(
            WORKERS, SuspectScope.CONTAINER, 500 * 16 * MIB, "container c0ffeec0ffee, 500 sockets of 500", id="workers"
        ),
        pytest.param(
            [of(pid=n, container=f"c{n}", pod="pod-1") for n in (1, 2, 3)],
            SuspectScope.POD,
            27 * MIB,
            "pod pod-1, 3 sockets of 3 processes",
            id="three containers of a pod",
        ),
        pytest.param(
            [*WORKERS, of(pid=100, container="c0ffee" * 8, pinned=20 * MIB)],
            SuspectScope.CONTAINER,
            500 * 16 * MIB + 20 * MIB,
            "container c0ffeec0ffee",
            id="one worker above the limit does not hide the others",
        ),
        pytest.param(
            [of(pid=1, container="c", pinned=60 * MIB), of(pid=2, container="c"), of(pid=3, container="c")],
            SuspectScope.PROCESS,
            60 * MIB,
            "worker[1] fd 3: ",
            id="the process that has the most of its container",
        ),
        pytest.param(
            [unowned(pinned=30 * MIB)], SuspectScope.PROCESS, 30 * MIB, "a socket that no process holds", id="unowned"
        ),
    ],
)
def test_the_suspect_is_the_smallest_group_that_pins_much(
    holders: list[Holder], scope: SuspectScope, suspect_bytes: int, words: str
) -> None:
    answer = verdict(holders=holders)
    assert (answer.kind, answer.scope) == (VerdictKind.PINNED_BY_UNREAD_SOCKET, scope), answer.sentence
    members = len(holders) if scope is not SuspectScope.PROCESS else 1
    kept_bytes = suspect_bytes + members * PACKET_STRUCT_BYTES
    assert (answer.suspect_bytes, answer.suspect_unread_bytes) == (kept_bytes, 3 * MIB * members)
    assert answer.sentence[0].isalpha()
    assert words in answer.sentence


@pytest.mark.parametrize(
    ("name", "holders"),
    [
        ("processes of the host", [of(pid=pid) for pid in (1, 2, 3)]),
        ("pods", [of(pid=pid, container=f"c{pid}", pod=f"pod-{pid}") for pid in (1, 2, 3)]),
        ("an orphan and a socket of the kernel", [unowned(pinned=15 * MIB), unowned(pinned=12 * MIB)]),
        ("a sum of sockets without a process", [unowned(pinned=27 * MIB, summed=300)]),
    ],
)
def test_stuck_sockets_with_nothing_in_common_have_no_suspect_and_rule_out_no_leak(
    name: str, holders: list[Holder]
) -> None:
    answer = verdict(holders=holders)
    assert (answer.kind, answer.scope) == (VerdictKind.SUSPICIOUS_MEMORY, SuspectScope.NODE), name
    assert answer.sentence.startswith("The node, ")
    assert answer.sentence.endswith("pins 27.0 MiB.")
    assert answer.holder == 0


def test_many_stuck_sockets_do_not_hide_a_large_class() -> None:
    """And what they pin does not count as held but not stuck."""
    large = with_class("SUnreclaim", 9 * GIB).model_copy(update={"alloc_page_bytes": 8 * GIB})
    holders = [of(pid=pid, container=f"c{pid}", pod=f"pod-{pid}", pinned=16 * MIB) for pid in range(1, 500)]
    answer = verdict(holders=holders, breakdown=large, held_bytes=8 * GIB)
    assert answer.kind is VerdictKind.LARGE_BUT_UNEXPLAINED
    assert answer.sentence == "SUnreclaim has 9.00 GiB that no check explains."
    assert any(one.startswith("also: The node, 499 sockets of 499 processes") for one in answer.reasons)


def test_stuck_sockets_that_pin_little_together_are_not_a_leak() -> None:
    assert verdict(holders=[of(pid=pid, pinned=5 * MIB) for pid in (1, 2, 3)]).kind is VerdictKind.NO_LEAK


def test_the_advice_does_not_restart_a_process_that_does_not_exist() -> None:
    assert "No process can be restarted" in verdict(holders=[unowned(pinned=GIB)]).advice


def test_the_process_that_pins_most_is_named_first() -> None:
    answer = verdict(
        holders=[holder(pid=1, pinned=100 * MIB), holder(pid=2, pinned=60 * MIB), holder(pid=2, pinned=60 * MIB)]
    )
    assert (answer.holder, answer.suspect_bytes) == (1, 120 * MIB + 2 * PACKET_STRUCT_BYTES)


def test_a_socket_without_a_process_is_named_by_its_reason() -> None:
    assert "not yet accepted" in verdict(holders=[holder(pid=None)]).sentence


def test_sockets_of_a_process_that_has_ended_are_one_group() -> None:
    """Its pid was seen, but its name could no longer be read."""
    ended = holder(pid=None, pinned=30 * MIB).model_copy(
        update={"summed": 99, "owners_total": 1, "unowned_reason": "", "socket": None}
    )
    answer = verdict(holders=[ended])
    assert answer.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert answer.sentence.startswith("99 sockets of a process that has ended: ")


def test_a_queue_that_could_not_be_read_whole_lowers_the_confidence() -> None:
    assert verdict(holders=[holder(complete=False)]).confidence is Confidence.MEDIUM


def test_the_join_is_among_the_reasons() -> None:
    filled = holder().model_copy(update={"filled_by": [FilledBy(stack=0, size_bytes=5 * GIB, share=0.97)]})
    growing = stack(outstanding=5 * GIB, trend=Trend.GROWING).model_copy(
        update={"held_by": [HeldBy(holder=0, size_bytes=5 * GIB, share=1)], "explained_bytes": 5 * GIB}
    )
    answer = verdict(holders=[filled], stacks=[growing])
    assert answer.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert "97% of what it pins was allocated in the window through skb_page_frag_refill+0x10" in answer.reasons
    assert answer.stack == 0


@pytest.mark.parametrize(
    ("outstanding", "trend", "kind"),
    [
        (100 * MIB, Trend.GROWING, VerdictKind.GROWING_KERNEL_ALLOCATION),
        (100 * MIB, Trend.CHURN, VerdictKind.NO_LEAK),
        (100 * MIB, Trend.PINNED, VerdictKind.SUSPICIOUS_MEMORY),  # a burst: one window cannot show the next
        (15 * MIB, Trend.PINNED, VerdictKind.NO_LEAK),
        (15 * MIB, Trend.GROWING, VerdictKind.NO_LEAK),
    ],
)
def test_a_growing_stack_is_a_leak_from_a_size_on(outstanding: int, trend: Trend, kind: VerdictKind) -> None:
    assert verdict(stacks=[stack(outstanding=outstanding, trend=trend)]).kind is kind


@pytest.mark.parametrize("frames", [("unnamed#0a1b2c3d", "unnamed#4e5f6071"), NO_STACK, ()])
def test_a_stack_without_names_is_not_called_growing_and_leaves_doubt(frames: Sequence[str]) -> None:
    answer = verdict(stacks=[stack(outstanding=5 * GIB, trend=Trend.GROWING, frames=frames)])
    assert (answer.kind, answer.confidence) == (VerdictKind.INCONCLUSIVE, Confidence.LOW)
    assert "the kernel provided no names for call stacks" in answer.sentence


@pytest.mark.parametrize(
    ("unnamed_bytes", "named", "kind"),
    [
        (4096, 0, VerdictKind.INCONCLUSIVE),  # the kernel provides no names: a leak may be split over many stacks
        (4096, 1, VerdictKind.NO_LEAK),
        (15 * MIB, 1, VerdictKind.NO_LEAK),
        (20 * MIB, 1, VerdictKind.INCONCLUSIVE),
    ],
)
def test_without_names_no_leak_is_ruled_out(unnamed_bytes: int, named: int, kind: VerdictKind) -> None:
    stacks = [stack(outstanding=unnamed_bytes // 2, trend=Trend.UNCLEAR, frames=(f"unnamed#{n}",)) for n in range(2)]
    stacks += [stack(outstanding=4096, trend=Trend.UNCLEAR)] * named
    assert verdict(stacks=stacks).kind is kind


def test_a_growing_stack_is_named_by_its_innermost_name() -> None:
    frames = ("unnamed#0a1b2c3d", "skb_page_frag_refill+0x10")
    answer = verdict(stacks=[stack(outstanding=5 * GIB, trend=Trend.GROWING, frames=frames)])
    assert answer.sentence.startswith("Allocations through skb_page_frag_refill+0x10 grow")


@pytest.mark.parametrize(
    ("alloc_page", "explained", "kind"),
    [
        (2 * GIB, 0, VerdictKind.LARGE_BUT_UNEXPLAINED),
        (400 * MIB, 0, VerdictKind.LARGE_BUT_UNEXPLAINED),
        (400 * MIB, 200 * MIB, VerdictKind.NO_LEAK),
        (300 * MIB, 0, VerdictKind.NO_LEAK),
    ],
)
def test_large_allocpage_is_reported_if_no_holder_is_known(alloc_page: int, explained: int, kind: VerdictKind) -> None:
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": alloc_page})
    assert verdict(breakdown=large, held_bytes=explained).kind is kind


def test_many_small_stuck_sockets_of_one_process_count_together() -> None:
    """The largest are listed one by one, the others summed up: a leak may be spread over them."""
    single = holder(pinned=MIB)
    many = holder(pinned=200 * MIB).model_copy(
        update={"summed": 999, "unread_packets": 9990, "socket": None, "owners": [Owner(pid=4711, comm="nginx")]}
    )
    found = verdict(holders=(many, single))
    assert (found.kind, found.holder) == (VerdictKind.PINNED_BY_UNREAD_SOCKET, 1)
    assert found.suspect_bytes == 201 * MIB + 9991 * PACKET_STRUCT_BYTES
    assert found.sentence.startswith("nginx[4711] fd 11 and 999 more of its sockets: ")
    alone = verdict(holders=(many,))
    assert alone.sentence.startswith("nginx[4711] 999 of its sockets: ")


def test_a_large_remainder_has_upper_bounds_by_place() -> None:
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
        "at least 2.00 GiB of it are single pages, or blocks without __GFP_COMP",
    ]
    unplaced = census.model_copy(
        update={"compound": [CompoundBlocks(order=3, blocks=0, size_bytes=GIB)], "charged": None}
    )
    assert len(verdict(breakdown=large, census=unplaced).reasons) == 1  # the threshold


def test_a_census_that_was_cut_short_bounds_only_what_it_scanned() -> None:
    """On a node of 64 GiB the census saw a quarter: the whole may have four times as much."""
    census = Census(
        compound=[CompoundBlocks(order=3, blocks=0, size_bytes=GIB, held_bytes=0)], charged=[], scanned_share=0.25
    )
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": 20 * GIB})
    answer = verdict(breakdown=large, census=census)
    assert answer.reasons[1:] == [
        "in the 25% of page frames that were scanned, at most 1.00 GiB of it are blocks of order 3 and in no known "
        "holder",
        "the census scanned 25% of the page frames",
    ]


def with_class(name: str, size_bytes: int) -> Breakdown:
    assert IDLE.breakdown is not None
    classes = [MemoryClass(name=name, group="Kernel", size_bytes=size_bytes)]
    return IDLE.breakdown.model_copy(update={"classes": classes})


@pytest.mark.parametrize("name", ["SUnreclaim", "Vmalloc", "Percpu", "Shmem"])
def test_a_large_class_that_no_check_covers_rules_out_no_leak(name: str) -> None:
    answer = verdict(breakdown=with_class(name, 5 * GIB))
    assert answer.kind is VerdictKind.LARGE_BUT_UNEXPLAINED
    assert answer.sentence == f"{name} has 5.00 GiB that no check explains."
    assert answer.advice
    assert answer.suspect_bytes == 5 * GIB
    quiet = with_class(name, 320 * MIB).model_copy(update={"alloc_page_bytes": 0})
    assert verdict(breakdown=quiet).kind is VerdictKind.NO_LEAK  # 2 % of 16 GiB are 328 MiB


def test_unexplained_memory_of_several_classes_counts_together() -> None:
    """AllocPage has 300 MiB here: neither class reaches 328 MiB alone."""
    answer = verdict(breakdown=with_class("Vmalloc", 320 * MIB))
    assert answer.kind is VerdictKind.LARGE_BUT_UNEXPLAINED
    assert answer.sentence == "620 MiB of kernel memory in several classes are not explained."
    assert "unexplained: AllocPage 300 MiB, Vmalloc 320 MiB" in answer.reasons


@pytest.mark.parametrize("name", ["AnonPages", "FileCache", "SReclaimable", "PageTables", "MemFree"])
def test_a_class_that_has_owners_or_is_reclaimable_does_not(name: str) -> None:
    assert verdict(breakdown=with_class(name, 12 * GIB)).kind is VerdictKind.NO_LEAK


def test_all_large_classes_are_named_the_largest_first() -> None:
    assert IDLE.breakdown is not None
    classes = [
        MemoryClass(name=name, group="Kernel", size_bytes=size)
        for name, size in (("Vmalloc", GIB), ("SUnreclaim", 3 * GIB))
    ]
    both = IDLE.breakdown.model_copy(update={"classes": classes, "alloc_page_bytes": 2 * GIB})
    answer = verdict(breakdown=both)
    assert answer.sentence == "SUnreclaim has 3.00 GiB that no check explains."
    assert [one for one in answer.reasons if one.startswith("also: ")] == [
        "also: AllocPage has 2.00 GiB; 2.00 GiB of it are neither held by a known holder nor growing now",
        "also: Vmalloc has 1.00 GiB that no check explains",
    ]


def pipe(pid: int, pinned: int) -> Holder:
    owner = Owner(pid=pid, comm="python3", fds=[5])
    return Holder(kind=HolderKind.PIPE, owners=[owner], owners_total=1, pinned_bytes=pinned)


POOL = Holder(
    kind=HolderKind.PAGE_POOL,
    description="page pool 3 of eth0",
    unowned_reason="the kernel's own",
    pinned_bytes=5 * GIB,
)


@pytest.mark.parametrize(
    ("holders", "words", "named"),
    [
        pytest.param(
            [holder(stuck=None, pinned=GIB), *[pipe(7, 600 * MIB) for _ in range(10)]],
            "10 pipes of python3[7] keep 5.86 GiB of AllocPage.",
            1,
            id="pipes of a process",
        ),
        pytest.param(
            [holder(stuck=None, pinned=6 * GIB)], "A socket of nginx[4711] keeps 6.00 GiB of AllocPage.", 0, id="queues"
        ),
        pytest.param(
            [POOL], "A page pool of no process (the kernel's own) keeps 5.00 GiB of AllocPage.", 0, id="page pool"
        ),
    ],
)
def test_large_held_memory_that_is_not_stuck_rules_out_no_leak_and_names_the_largest_holder(
    holders: list[Holder], words: str, named: int
) -> None:
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": 6 * GIB})
    answer = verdict(breakdown=large, holders=holders, held_bytes=6 * GIB)
    assert (answer.kind, answer.sentence) == (VerdictKind.SUSPICIOUS_MEMORY, words)
    assert answer.holder == named


def bpf_map(pid: int, pinned: int) -> Holder:
    owner = Owner(pid=pid, comm="agent", fds=[5])
    return Holder(kind=HolderKind.BPF_MAP, memory_class="Vmalloc", owners=[owner], owners_total=1, pinned_bytes=pinned)


def test_what_holders_have_of_another_class_is_explained() -> None:
    """The maps have the size that their owner asked for, so only the rest of the class is suspicious."""
    answer = verdict(breakdown=with_class("Vmalloc", 2 * GIB), holders=[bpf_map(7, GIB), bpf_map(7, GIB // 2)])
    assert (answer.kind, answer.sentence) == (
        VerdictKind.LARGE_BUT_UNEXPLAINED,
        "Vmalloc has 512 MiB that no check explains.",
    )
    explained = verdict(breakdown=with_class("Vmalloc", int(1.6 * GIB)), holders=[bpf_map(7, 3 * GIB // 2)])
    assert explained.kind is VerdictKind.LARGE_BUT_UNEXPLAINED  # AllocPage has 300 MiB, and 102 MiB of Vmalloc are left
    assert explained.sentence.startswith("402 MiB of kernel memory in several classes")


def test_memory_of_another_class_does_not_hold_allocpage() -> None:
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": 6 * GIB})
    answer = verdict(breakdown=large, holders=[bpf_map(7, 9 * GIB), pipe(8, 6 * GIB)], held_bytes=6 * GIB)
    assert answer.sentence == "A pipe of python3[8] keeps 6.00 GiB of AllocPage."


def test_memory_allocated_in_the_window_is_named_by_its_call_stack() -> None:
    assert IDLE.breakdown is not None
    large = IDLE.breakdown.model_copy(update={"alloc_page_bytes": 4 * GIB})
    answer = verdict(breakdown=large, stacks=[stack(outstanding=3 * GIB, trend=Trend.PINNED)])
    assert answer.kind is VerdictKind.SUSPICIOUS_MEMORY
    assert answer.sentence == (
        "3.00 GiB were allocated in the window through skb_page_frag_refill+0x10, not freed, and are in no known "
        "holder."
    )
    assert answer.stack == 0


def test_without_any_check_it_is_inconclusive() -> None:
    assert verdict(checks=(), breakdown=None).kind is VerdictKind.INCONCLUSIVE


@pytest.mark.parametrize("missing", Check)
def test_no_leak_needs_every_check(missing: Check) -> None:
    checks = tuple(check for check in Check if check is not missing)
    answer = verdict(checks=checks, breakdown=None if missing is Check.BREAKDOWN else IDLE.breakdown)
    assert (answer.kind, answer.confidence) == (VerdictKind.INCONCLUSIVE, Confidence.LOW)
    assert f"{missing} was not run" in answer.sentence


def test_the_breakdown_alone_is_inconclusive() -> None:
    answer = verdict(checks=(Check.BREAKDOWN,))
    assert answer.kind is VerdictKind.INCONCLUSIVE
    assert "AllocPageTrace, SocketQueues, KernelObjects, Owners and Containers were not run" in answer.sentence
    assert answer.advice == "Run again with all checks, and when the node is less busy."


def test_what_the_host_lacks_is_where_to_start() -> None:
    lacking = Need(name="BTF", state=NeedState.MISSING, checks=[Check.CONTAINERS])
    answer = verdict(checks=(Check.BREAKDOWN,), needs=(lacking,))
    assert answer.advice.startswith("Check the missing and degraded needs below")


def counters(**changes: int) -> Trace:
    return Trace(
        outstanding_bytes=0,
        outstanding_blocks=0,
        slice_seconds=3,
        counters=TraceCounters.model_validate({"events_seen": 100_000, **changes}),
    )


GREW = IDLE.breakdown.model_copy(update={"alloc_page_change_bytes": 200 * MIB}) if IDLE.breakdown else None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {"coverage": ScanCoverage(sockets_not_reached=900_000, queues_not_reached=12)},
            "did not reach 900000 sockets and 12 queues",
            id="sockets",
        ),
        pytest.param(
            {"coverage": ScanCoverage(is_compared=False)}, "the first scan of the sockets failed", id="first scan"
        ),
        pytest.param({"coverage": ScanCoverage(lists_every_fd=False)}, "could not list every fd", id="fds"),
        pytest.param({"coverage": ScanCoverage(queues_not_reached=1)}, "0 sockets and 1 queues", id="queues"),
        pytest.param(
            {"coverage": ScanCoverage(blocks_not_kept=5)}, "5 blocks of sockets were not counted", id="blocks"
        ),
        pytest.param(
            {"coverage": ScanCoverage(incomplete_queues=2), "holders": [holder(pinned=MIB, complete=False)]},
            "2 queues could not be walked to their end, including 1 of stuck sockets",
            id="a stuck queue",
        ),
        pytest.param(
            {
                "coverage": ScanCoverage(sees_linear_heads=False),
                "holders": [holder(pinned=0).model_copy(update={"unread_packets": 5_000})],
            },
            "linear heads",
            id="packets whose heads cannot be seen",
        ),
        pytest.param(
            {"trace": counters(lost_records=5_000, lost_record_bytes=20 * MIB)}, "20.0 MiB of them", id="records"
        ),
        pytest.param({"trace": counters(missed_runs=20_000)}, "skipped 20000 runs", id="program runs"),
        pytest.param(
            {"trace": counters(untraced_bytes=150 * MIB), "breakdown": GREW},
            "AllocPage grew by 200 MiB, and the trace did not see 150 MiB of it",
            id="untraced growth",
        ),
        pytest.param({"window_seconds": 0.4}, "the window of 0.4 s is too short", id="window"),
        pytest.param({"doubts": [Doubt("a probe failed", forbids_no=True)]}, "a probe failed", id="another's doubt"),
    ],
)
def test_losses_that_may_hide_a_leak_rule_out_no_leak(changes: dict[str, Any], words: str) -> None:
    answer = verdict(**changes)
    assert (answer.kind, answer.confidence) == (VerdictKind.INCONCLUSIVE, Confidence.LOW), answer.sentence
    assert words in answer.sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"interrupted": True}, "ended early", id="early end"),
        pytest.param({"coverage": ScanCoverage(incomplete_queues=3)}, "3 queues", id="queues that are read"),
        pytest.param({"coverage": ScanCoverage(sees_linear_heads=False)}, "linear heads", id="heads, nothing stuck"),
        pytest.param({"coverage": ScanCoverage(socket_tables_complete=False)}, "tables of sockets", id="orphans"),
        pytest.param({"trace": counters(lost_records=9, lost_record_bytes=MIB)}, "9 allocations", id="few records"),
        pytest.param({"trace": counters(lost_stacks=9)}, "9 allocations have no call stack", id="stacks"),
        pytest.param({"trace": counters(missed_runs=2_000)}, "2% of all runs", id="some runs"),
        pytest.param({"trace": counters(untraced_bytes=500 * MIB)}, "differ by 500 MiB", id="untraced"),
        pytest.param(
            {"trace": counters(recorded_objects=90, lost_objects=10)},
            "10 of 100 slab objects, vmalloc areas and per-CPU allocations were not recorded",
            id="lost objects",
        ),
        pytest.param(
            {"trace": counters(recorded_objects=100, unresolved_objects=6)},
            "6 of 100 recorded slab objects are in no slab that could be read",
            id="objects without a slab",
        ),
        pytest.param({"census": Census(compound=[], scanned_share=0.4)}, "40% of the page frames", id="frames"),
        pytest.param({"doubts": [Doubt("a symbol is missing", forbids_no=False)]}, "a symbol", id="another's doubt"),
    ],
)
def test_small_losses_lower_the_confidence_in_no_leak(changes: dict[str, Any], words: str) -> None:
    answer = verdict(**changes)
    assert (answer.kind, answer.confidence) == (VerdictKind.NO_LEAK, Confidence.MEDIUM)
    assert any(words in reason for reason in answer.reasons), answer.reasons


@pytest.mark.parametrize(
    "changes",
    [
        {"coverage": ScanCoverage(sockets=500, queues=90)},
        {"trace": counters(missed_runs=700)},
        {"trace": counters(recorded_objects=10_000, lost_objects=400, unresolved_objects=400)},
        {"trace": counters(untraced_bytes=2 * MIB)},
        {"trace": counters(untraced_bytes=2 * MIB), "breakdown": GREW},  # before the trace started
        {"census": Census(compound=[])},
    ],
)
def test_what_every_healthy_run_misses_does_not_count_as_a_doubt(changes: dict[str, Any]) -> None:
    assert verdict(**changes).confidence is Confidence.HIGH


def test_a_leak_is_less_certain_if_not_everything_was_checked() -> None:
    assert verdict(holders=[holder()], checks=(Check.SOCKET_QUEUES,)).confidence is Confidence.MEDIUM
    assert verdict(holders=[holder()], interrupted=True).confidence is Confidence.MEDIUM


def test_thresholds_grow_with_the_machine() -> None:
    assert THRESHOLDS.suspect_bytes(2 * GIB) == 16 * MIB
    assert THRESHOLDS.suspect_bytes(1000 * GIB) == 1000 * GIB // 1000
    assert THRESHOLDS.large_bytes(2 * GIB) == 256 * MIB
    assert THRESHOLDS.large_bytes(1000 * GIB) == 20 * GIB


def test_blocks_that_a_process_s_sockets_share_count_once() -> None:
    blocks = np.zeros(70 * MIB // PAGE, PINNED_DTYPE)
    blocks["page"] = np.arange(len(blocks)) * 64
    each = 60 * MIB // PAGE
    answer = verdict(
        holders=[holder(fd=7, pinned=60 * MIB), holder(fd=8, pinned=60 * MIB)], blocks=[blocks[:each], blocks[-each:]]
    )
    assert answer.suspect_bytes == 70 * MIB + 2 * PACKET_STRUCT_BYTES
    assert "pins 70.0 MiB" in answer.sentence
