"""The findings about processes that the kernel killed for lack of memory."""

from collections.abc import Sequence

import pytest

from memdiag_api.containers import ContainerAccount, OomKill, OomScope
from memdiag_api.evidence import Check
from memdiag_api.findings import LeakAnswer
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_node.findings.draft import Draft, ranked
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.oom_kills import oom_kills
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from support.measurements import host_of, window_of

ID, POD = "4f1c" * 16, "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"


def found_in(kills: Sequence[OomKill] = (), containers: Sequence[ContainerAccount] = ()) -> list[Draft]:
    """The findings about these kills and containers. None accounts for memory or is a leak."""
    measured = Measurements(
        host=host_of(16 * GIB),
        window=window_of(60),
        checks=tuple(Check),
        needs=(),
        containers=list(containers),
        oom_kills=list(kills),
    )
    found = list(oom_kills(Situation(measured, Thresholds())))
    assert all(one.leak == LeakAnswer.NO and one.claimed_bytes == {} and one.is_past for one in found)
    return found


KILL = OomKill(
    seconds_ago=180,
    scope=OomScope.CONTAINER,
    container_id=ID,
    pod_uid=POD,
    limit_path=f"/kubepods/pod{POD}/{ID}",
    comm="java",
    pid=4711,
    anon_bytes=480 * MIB,
    file_bytes=MIB,
    shmem_bytes=0,
    limit_bytes=512 * MIB,
    classes_bytes={"anon": 480 * MIB, "sock": MIB},
)
NODE_KILL = KILL.model_copy(update={"scope": OomScope.NODE, "limit_bytes": None, "limit_path": "", "seconds_ago": 7200})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "The kernel killed java[4711] of container 4f1c4f1c4f1c 3 min ago: its limit of 512 MiB was reached, "
            "anonymous 480 MiB.",
        ),
        (
            {"seconds_ago": 9.4, "limit_bytes": None, "container_id": ""},
            f"The kernel killed java[4711] of pod {POD} 9 s ago: its limit was reached, anonymous 480 MiB.",
        ),
        (
            {"seconds_ago": None, "container_id": "", "pod_uid": "", "comm": "x y"},
            'The kernel killed "x y"[4711]: its limit of 512 MiB was reached, anonymous 480 MiB.',
        ),
        (
            {"scope": OomScope.NODE, "seconds_ago": 7200},
            "The kernel killed java[4711] of container 4f1c4f1c4f1c 2 h ago: the node had no memory left, "
            "anonymous 480 MiB.",
        ),
    ],
)
def test_a_killed_process(changes: dict[str, object], sentence: str) -> None:
    assert [one.sentence for one in found_in([KILL.model_copy(update=changes)])] == [sentence]


def kill_of(container: str, pod: str, **changes: object) -> OomKill:
    """A kill in that container, of which one character stands for the ID."""
    return KILL.model_copy(
        update={"container_id": container * 64, "pod_uid": pod, "limit_path": f"/{pod}/{container}", **changes}
    )


def test_only_the_latest_kills_of_the_last_minutes_are_read_before_ordinary_uses() -> None:
    kills = [kill_of(f"{number}", f"pod-{number}", seconds_ago=ago) for number, ago in enumerate([60, 540, 660])]
    assert [one.is_notable for one in found_in(kills)] == [True, True, False]
    unknown = KILL.model_copy(update={"seconds_ago": None})
    assert [one.is_notable for one in found_in([unknown])] == [True]
    with_node = [NODE_KILL.model_copy(update={"seconds_ago": 30}), *kills[:2], kill_of("2", "pod-2", seconds_ago=560)]
    assert [one.is_notable for one in found_in(with_node)] == [True, True, True, False]


def test_the_latest_kill_is_read_first_even_if_an_earlier_one_was_larger() -> None:
    earlier = KILL.model_copy(update={"pid": 7, "pod_uid": "", "container_id": "e" * 64, "anon_bytes": 2 * GIB})
    first, second = ranked(found_in([KILL.model_copy(update={"seconds_ago": 20}), earlier]))
    assert first.size_bytes < second.size_bytes
    assert "java[4711]" in first.sentence


def test_a_pod_that_keeps_restarting_is_one_finding() -> None:
    """Each restart gives a container a new ID."""
    kills = [
        kill_of("a", POD, seconds_ago=60),
        kill_of("b", POD, pid=4000, seconds_ago=3000),
        kill_of("b", POD, pid=4001, seconds_ago=3001),
        kill_of("c", POD, pid=3000, seconds_ago=9000),
    ]
    (found,) = found_in(kills)
    assert found.sentence == (
        f"The kernel killed 4 processes of 3 containers of pod {POD}, the latest java[4711] of container aaaaaaaaaaaa "
        "1 min ago: its limit of 512 MiB was reached, anonymous 480 MiB."
    )
    assert found.owner == MemoryOwner(kind=OwnerKind.POD, pod_uid=POD)
    assert "3 more were killed before: java[3000], java[4000], java[4001]" in found.reasons


@pytest.mark.parametrize(
    ("kills", "owner", "beginning"),
    [
        pytest.param(
            [kill_of("a", POD), kill_of("a", POD, pid=2)],
            MemoryOwner(kind=OwnerKind.CONTAINER, container_id="a" * 64, pod_uid=POD),
            "The kernel killed java[4711] of container aaaaaaaaaaaa 3 min ago",
            id="one container of a pod",
        ),
        pytest.param(
            [kill_of("a", ""), kill_of("a", "", pid=2)],
            MemoryOwner(kind=OwnerKind.CONTAINER, container_id="a" * 64),
            "The kernel killed java[4711] of container aaaaaaaaaaaa 3 min ago",
            id="a container without a pod",
        ),
        pytest.param(
            [kill_of("", POD), kill_of("a", POD)],
            MemoryOwner(kind=OwnerKind.POD, pod_uid=POD),
            f"The kernel killed 2 processes of pod {POD}, the latest java[4711] 3 min ago",
            id="a pod, one of its containers unknown",
        ),
        pytest.param(
            [kill_of("", "", limit_path="/x"), kill_of("", "", limit_path="/x")],
            MemoryOwner(kind=OwnerKind.CGROUP, name="/x"),
            "The kernel killed java[4711] 3 min ago",
            id="another cgroup",
        ),
        pytest.param(
            [kill_of("a", POD, scope=OomScope.NODE), kill_of("b", POD, scope=OomScope.NODE)],
            MemoryOwner(kind=OwnerKind.NODE),
            "The kernel killed java[4711] of container aaaaaaaaaaaa 3 min ago: the node had no memory left",
            id="the node",
        ),
    ],
)
def test_the_owner_of_kills(kills: list[OomKill], owner: MemoryOwner, beginning: str) -> None:
    (found,) = found_in(kills)
    assert found.owner == owner
    assert found.sentence.startswith(beginning)


LATEST = [kill_of(f"{number}", f"pod-{number}", seconds_ago=100 * number) for number in range(3)]


def test_all_but_the_latest_groups_are_one_finding() -> None:
    old = [
        kill_of("a", "pod-a", pid=1, seconds_ago=7200),
        NODE_KILL.model_copy(update={"seconds_ago": 7300}),
        kill_of("b", "pod-a", pid=2, seconds_ago=8000, anon_bytes=900 * MIB),
        kill_of("c", "", pid=3, seconds_ago=9000),
        kill_of("", "pod-d", pid=4, seconds_ago=9100, anon_bytes=MIB),
        kill_of("", "", pid=5, limit_path="/x", seconds_ago=65_000, anon_bytes=500 * MIB),
    ]
    *single, node, rest = found_in([*LATEST, *old])
    assert [one.owner.pod_uid for one in single if one.owner] == ["pod-0", "pod-1", "pod-2"]
    assert rest.sentence == (
        "The kernel killed 5 more processes of 3 containers, 1 pod and 1 cgroup in the last 19 h for lack of memory, "
        "the largest of 901 MiB."
    )
    assert list(rest.reasons) == [
        "2 of 2 containers of pod pod-a, the largest java[2] 2 h ago with 901 MiB",
        "1 at the limit of /x, the largest java[5] 18 h ago with 501 MiB",
        "1 of container cccccccccccc, the largest java[3] 2 h ago with 481 MiB",
    ]
    assert node.owner == rest.owner == MemoryOwner(kind=OwnerKind.NODE)
    assert (rest.is_past, rest.is_notable, rest.size_bytes) == (True, False, 901 * MIB)


@pytest.mark.parametrize(
    ("kills", "sentence"),
    [
        (
            [kill_of("a", POD, seconds_ago=3540.1)],
            "The kernel killed another process of 1 container in the last 1 h for lack of memory, the largest of "
            "481 MiB.",
        ),
        (
            [kill_of("a", POD, seconds_ago=3540), kill_of("b", POD, seconds_ago=300)],
            "The kernel killed 2 more processes of 2 containers in the last 59 min for lack of memory, the largest of "
            "481 MiB.",
        ),
        (
            [kill_of("a", POD, seconds_ago=None), kill_of("b", POD)],
            "The kernel killed 2 more processes of 2 containers for lack of memory, the largest of 481 MiB.",
        ),
    ],
)
def test_a_rest_of_one_group_has_its_owner(kills: list[OomKill], sentence: str) -> None:
    *_, rest = found_in([*LATEST, *kills])
    assert rest.sentence == sentence
    several = len(kills) > 1
    assert rest.owner == MemoryOwner(
        kind=OwnerKind.POD if several else OwnerKind.CONTAINER,
        container_id="" if several else kills[0].container_id,
        pod_uid=POD,
    )


def test_kills_at_one_limit_are_one_finding_and_those_of_the_node_another() -> None:
    earlier = KILL.model_copy(update={"pid": 4000, "seconds_ago": 3000})
    of_limit, of_node = found_in([KILL, NODE_KILL, earlier])
    assert "1 more were killed before: java[4000]" in of_limit.reasons
    assert "what was largest in the cgroup then: anon 480 MiB, sock 1.00 MiB" in of_limit.reasons
    assert of_node.owner is not None
    assert of_node.owner.kind is OwnerKind.NODE


def test_kills_that_the_log_does_not_have_are_known_from_the_events() -> None:
    killed = ContainerAccount(container_id=ID, pod_uid=POD, usage_bytes=480 * MIB, window_oom_kills=2)
    assert [one.sentence for one in found_in(containers=[killed])] == [
        "The kernel killed 2 processes of container 4f1c4f1c4f1c for lack of memory in the window."
    ]
    assert len(found_in([KILL], [killed])) == 1
    restarted = killed.model_copy(update={"container_id": "5" * 64})
    assert len(found_in([KILL], [restarted])) == 1
    of_another_pod = restarted.model_copy(update={"pod_uid": "another"})
    assert len(found_in([KILL], [of_another_pod])) == 2
    assert len(found_in([NODE_KILL], [restarted])) == 2
