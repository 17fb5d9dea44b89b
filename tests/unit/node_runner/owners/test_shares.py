"""Shares of processes in memory that forks share, compared with which blocks each of them really has."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.owners.shares import shares_of
from support.processes import process

MIB = 1 << 20


def anon(one: ProcessMemory) -> int:
    return one.rss_anon_bytes


def shown(processes: Sequence[ProcessMemory], excess_bytes: int = 0) -> list[tuple[set[int], int]]:
    found = shares_of(processes, anon, excess_bytes)
    return [({one.pid for one in share.processes}, share.size_bytes // MIB) for share in found]


@pytest.mark.parametrize(
    ("processes", "excess_mib", "expected"),
    [
        pytest.param([process(5, anon=300 * MIB)], 0, [({5}, 300)], id="one process"),
        pytest.param([process(5, anon=300 * MIB)], 50, [({5}, 300)], id="others share, it does not"),
        pytest.param(
            [process(5, anon=300 * MIB, family=1), process(6, anon=300 * MIB, family=1)],
            300,
            [({5, 6}, 300)],
            id="a fork that shares all",
        ),
        pytest.param(
            [process(5, anon=300 * MIB, family=1), process(6, anon=200 * MIB, family=1)],
            0,
            [({5}, 300), ({6}, 200)],
            id="a fork that has written to all",
        ),
        pytest.param(
            [process(5, anon=1000 * MIB, family=1), process(6, anon=10 * MIB, family=1)],
            500,
            [({5}, 990)],
            id="a small fork of a large process",
        ),
        pytest.param(
            [process(1 + pid, "postgres", anon=10 * MIB) for pid in range(400)],
            0,
            [(set(range(1, 401)), 4000)],
            id="many of one name",
        ),
        pytest.param(
            [process(5, "python", anon=800 * MIB), *(process(6 + n, "python", anon=MIB) for n in range(8))],
            0,
            [({5}, 800), (set(range(6, 14)), 8)],
            id="a large one among small ones of its name",
        ),
        pytest.param(
            [
                process(5, "python", anon=300 * MIB),
                process(6, "python", anon=299 * MIB),
                process(7, "python", anon=9 * MIB),
                process(8, "java", anon=1000 * MIB),
            ],
            0,
            [({8}, 1000), ({5}, 300), ({6}, 299), ({7}, 9)],
            id="large ones, few of their name",
        ),
        pytest.param(
            [*(process(pid, "python", anon=90 * MIB) for pid in range(5, 10)), process(4, "python", anon=MIB)],
            0,
            [({4, 5, 6, 7, 8, 9}, 451)],
            id="five alike",
        ),
        pytest.param(
            [
                process(5, "python", anon=90 * MIB, is_self=True),
                *(process(pid, "python", anon=80 * MIB) for pid in range(6, 11)),
            ],
            0,
            [({6, 7, 8, 9, 10}, 400), ({5}, 90)],
            id="this run stays apart",
        ),
        pytest.param([process(5), process(6, anon=MIB)], 0, [({6}, 1)], id="none"),
    ],
)
def test_shares(processes: list[ProcessMemory], excess_mib: int, expected: list[tuple[set[int], int]]) -> None:
    assert shown(processes, excess_mib * MIB) == expected


@dataclass(frozen=True, slots=True)
class World:
    """Processes, and blocks of memory that each belong to some processes of one family."""

    processes: list[ProcessMemory]
    blocks: list[tuple[frozenset[int], int]]

    @property
    def exists_bytes(self) -> int:
        return sum(size for _, size in self.blocks)

    def freed_by_ending(self, pids: set[int]) -> int:
        return sum(size for users, size in self.blocks if users <= pids)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    blocks: list[tuple[frozenset[int], int]] = []
    processes = []
    pid = 1
    for family in range(draw(st.integers(1, 4))):
        pids = list(range(pid, pid + draw(st.integers(1, 4))))
        pid += len(pids)
        users = st.frozensets(st.sampled_from(pids), min_size=1)
        own = draw(st.lists(st.tuples(users, st.integers(1, 1000)), max_size=6))
        blocks += own
        names = st.sampled_from(["a", "b"])
        processes += [
            process(one, draw(names), anon=sum(size for users, size in own if one in users), family=family)
            for one in pids
        ]
    return World(processes, blocks)


@given(worlds(), st.integers(0, 100))
def test_ending_the_processes_of_a_share_brings_back_at_least_its_size(world: World, more: int) -> None:
    """However they share, and also if the excess seems larger than it is."""
    excess = sum(map(anon, world.processes)) - world.exists_bytes
    found = shares_of(world.processes, anon, excess + more)
    pids = [one.pid for share in found for one in share.processes]
    assert len(pids) == len(set(pids))
    assert sum(share.size_bytes for share in found) <= world.exists_bytes
    for share in found:
        assert 0 < share.size_bytes <= world.freed_by_ending({one.pid for one in share.processes})


@given(worlds())
def test_without_sharing_everything_is_explained(world: World) -> None:
    apart = [(users, size) for users, size in world.blocks if len(users) == 1]
    processes = [
        process(one.pid, one.comm, anon=sum(size for users, size in apart if one.pid in users), family=one.family)
        for one in world.processes
    ]
    assert sum(share.size_bytes for share in shares_of(processes, anon, 0)) == sum(size for _, size in apart)
