"""The findings about memory cgroups: removed ones, containers near their limit, killed processes."""

from dataclasses import replace

import pytest

from memdiag_api.containers import ChargedFile, ContainerAccount, OomKill, OomScope, RemovedCgroups, RemovedGroupShare
from memdiag_api.evidence import Breakdown, Check
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.container_near_limit import containers_near_limit
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.oom_kills import oom_kills
from memdiag_node.findings.removed_cgroups import removed_cgroups
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import MIB, Thresholds
from support.measurements import host_of, window_of

GIB = 1024 * MIB
ID, POD = "4f1c" * 16, "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"
IDLE = Measurements(
    host=host_of(16 * GIB),
    window=window_of(60),
    checks=tuple(Check),
    needs=(),
    breakdown=Breakdown(mem_total_bytes=16 * GIB, classes=[], alloc_page_bytes=300 * MIB, alloc_page_error_bytes=0),
)
NO, UNKNOWN = LeakAnswer.NO, LeakAnswer.UNKNOWN


def situation(**measured: object) -> Situation:
    return Situation(replace(IDLE, **measured), Thresholds())  # type: ignore[arg-type]


def groups(
    *, live: int = 100, removed: int = 0, change: int = 0, own: int = 0, file: int = 0, anon: int = 0
) -> Situation:
    found = RemovedCgroups(
        live=live,
        removed=removed,
        removed_change=change,
        percpu_bytes=own // 2,
        struct_bytes=own // 2,
        file_bytes=file,
        anon_bytes=anon,
    )
    return situation(removed_cgroups=found)


@pytest.mark.parametrize(
    ("name", "node", "expected"),
    [
        ("not measured", situation(), None),
        ("none", groups(), None),
        ("a few", groups(removed=999, own=MIB), None),
        ("many, but not many more than live ones", groups(live=310, removed=1000, own=MIB), (NO, True)),
        ("many of few", groups(live=90, removed=1000, own=MIB), (NO, True)),
        ("many of few, and more all the time", groups(live=90, removed=1000, change=10, own=MIB), (UNKNOWN, True)),
        ("one more of many", groups(live=90, removed=1000, change=1, own=MIB), (NO, True)),
        ("41,000 with their memory", groups(live=310, removed=41_000, own=400 * MIB), (UNKNOWN, True)),
        ("a few with page cache", groups(removed=300, file=GIB), (NO, False)),
        ("more than live ones, with page cache", groups(live=10, removed=300, file=GIB), (NO, False)),
        ("a few with files in tmpfs", groups(removed=300, anon=GIB), (NO, True)),
        ("more than live ones, with files in tmpfs", groups(live=10, removed=300, anon=GIB), (UNKNOWN, True)),
    ],
)
def test_removed_cgroups(name: str, node: Situation, expected: tuple[LeakAnswer, bool] | None) -> None:
    found = list(removed_cgroups(node))
    assert [(one.leak, one.is_notable) for one in found] == ([] if expected is None else [expected]), name


def test_removed_cgroups_account_for_what_they_hold() -> None:
    share = RemovedGroupShare(pod_uid=POD, path=f"/kubepods/pod{POD}", groups=1500, charged_bytes=5 * MIB)
    node = groups(live=310, removed=2000, own=400 * MIB, file=10 * MIB)
    assert node.measured.removed_cgroups is not None
    (found,) = removed_cgroups(
        situation(removed_cgroups=node.measured.removed_cgroups.model_copy(update={"shares": [share]}))
    )
    assert found.kind is FindingKind.REMOVED_CGROUPS
    assert found.size_bytes == 410 * MIB
    assert found.claimed_bytes == {ClassName.PERCPU: 200 * MIB}
    assert found.sentence == (
        "2,000 removed memory cgroups are not freed, and hold 410 MiB: 200 MiB per-CPU memory (estimated), "
        "200 MiB structures (estimated), 10.0 MiB page cache."
    )
    assert found.owner is not None
    assert (found.owner.kind, found.owner.pod_uid) == (OwnerKind.POD, POD)
    assert found.freed_by is not None
    assert found.freed_by.size_bytes == 410 * MIB


ACCOUNT = ContainerAccount(
    container_id=ID,
    pod_uid=POD,
    usage_bytes=640 * MIB,
    limit_bytes=640 * MIB,
    kernel_bytes=8 * MIB,
    anon_bytes=135 * MIB,
    file_bytes=4 * MIB,
    inactive_file_bytes=2 * MIB,
    shmem_bytes=0,
    slab_bytes=6 * MIB,
    socket_bytes=492 * MIB,
    working_set_bytes=638 * MIB,
    reclaimable_bytes=4 * MIB,
    window_limit_hits=0,
    window_oom_kills=0,
)
CACHE = ACCOUNT.model_copy(
    update={
        "anon_bytes": 100 * MIB,
        "socket_bytes": 0,
        "file_bytes": 530 * MIB,
        "inactive_file_bytes": 400 * MIB,
        "working_set_bytes": 240 * MIB,
        "reclaimable_bytes": 530 * MIB,
    }
)
ACTIVE_CACHE = CACHE.model_copy(update={"inactive_file_bytes": 10 * MIB, "working_set_bytes": 630 * MIB})


FILES = [ChargedFile(path="/var/log/app.log", cached_bytes=400 * MIB), ChargedFile(path="/data/x", cached_bytes=MIB)]


def with_(account: ContainerAccount, **changes: object) -> Situation:
    return situation(containers=[account.model_copy(update=changes)])


@pytest.mark.parametrize(
    ("name", "node", "expected"),
    [
        ("no containers", situation(), None),
        ("no limit", with_(ACCOUNT, limit_bytes=None), None),
        ("below the limit", with_(ACCOUNT, limit_bytes=720 * MIB), None),
        ("near the limit", with_(ACCOUNT, limit_bytes=700 * MIB), (False, True)),
        ("at the limit", with_(ACCOUNT), (False, True)),
        ("filled by cache", with_(CACHE), (True, False)),
        ("filled by cache, and the limit is reached", with_(CACHE, window_limit_hits=3), (True, True)),
        ("filled by active cache", with_(ACTIVE_CACHE), (True, True)),
        ("after a process was killed", with_(ACCOUNT, usage_bytes=10 * MIB, window_oom_kills=1), (False, True)),
        ("hits before the window", with_(CACHE, limit_hits=900), (True, False)),
        ("only the usage is known", with_(ACCOUNT, working_set_bytes=None, reclaimable_bytes=None), (False, True)),
    ],
)
def test_containers_near_their_limit(name: str, node: Situation, expected: tuple[bool, bool] | None) -> None:
    found = list(containers_near_limit(node))
    assert [(one.reclaimable, one.is_notable) for one in found] == ([] if expected is None else [expected]), name
    assert all(one.leak == NO and one.claimed_bytes == {} for one in found)


@pytest.mark.parametrize(
    ("account", "sentence", "memory_class"),
    [
        (
            ACCOUNT,
            "Container 4f1c4f1c4f1c uses 640 MiB of 640 MiB: 492 MiB socket memory, 135 MiB anonymous.",
            ClassName.ALLOC_PAGE,
        ),
        (
            CACHE,
            "Container 4f1c4f1c4f1c uses 640 MiB of 640 MiB: 530 MiB file cache, 100 MiB anonymous; most of it is "
            "cache that the kernel gives back.",
            ClassName.FILE_CACHE,
        ),
        (
            ContainerAccount(container_id="", pod_uid=POD, usage_bytes=64 * MIB, limit_bytes=64 * MIB),
            f"Pod {POD} uses 64.0 MiB of 64.0 MiB.",
            "",
        ),
    ],
)
def test_what_fills_a_limit(account: ContainerAccount, sentence: str, memory_class: str) -> None:
    (found,) = containers_near_limit(situation(containers=[account]))
    assert (found.sentence, found.memory_class, found.size_bytes) == (sentence, memory_class, account.usage_bytes)
    assert found.owner is not None
    assert found.owner.kind is (OwnerKind.CONTAINER if account.container_id else OwnerKind.POD)


@pytest.mark.parametrize(("account", "names_files"), [(CACHE, True), (ACCOUNT, False)])
def test_the_largest_files_are_named_where_files_fill_the_limit(
    account: ContainerAccount, *, names_files: bool
) -> None:
    (found,) = containers_near_limit(with_(account, files=FILES))
    named = "its largest files in memory: /var/log/app.log 400 MiB, /data/x 1.00 MiB"
    assert (named in found.reasons) == names_files


def test_the_reasons_say_how_often_the_limit_was_reached() -> None:
    node = with_(ACCOUNT, limit_hits=900, window_limit_hits=3, oom_kills=2, swap_bytes=MIB, usage_change_bytes=6 * MIB)
    (found,) = containers_near_limit(node)
    assert list(found.reasons) == [
        "the working set (as the kubelet computes it) is 100% of the limit",
        "the kernel would give back 4.00 MiB of it",
        "the limit was reached 900 times, 3 of them in the window",
        "the kernel killed 2 of its processes, 0 of them in the window",
        "1.00 MiB more are in swap",
    ]
    assert found.trend is not None
    assert found.trend.bytes_per_second == pytest.approx(0.1 * MIB)


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


def sentences(found: list[Draft]) -> list[str]:
    assert all(one.leak == NO and one.claimed_bytes == {} for one in found)
    return [one.sentence for one in found]


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
    assert sentences(list(oom_kills(situation(oom_kills=[KILL.model_copy(update=changes)])))) == [sentence]


def test_only_the_latest_kills_of_the_last_minutes_are_read_before_ordinary_uses() -> None:
    kills = [
        KILL.model_copy(update={"container_id": f"{number}" * 64, "limit_path": f"/{number}", "seconds_ago": ago})
        for number, ago in enumerate([60, 120, 180, 240, 700])
    ]
    assert [one.is_notable for one in oom_kills(situation(oom_kills=kills))] == [True, True, True, False, False]
    old = KILL.model_copy(update={"seconds_ago": 700})
    assert [one.is_notable for one in oom_kills(situation(oom_kills=[old]))] == [False]


def test_kills_at_one_limit_are_one_finding_and_those_of_the_node_another() -> None:
    earlier = KILL.model_copy(update={"pid": 4000, "seconds_ago": 3000})
    of_limit, of_node = oom_kills(situation(oom_kills=[KILL, NODE_KILL, earlier]))
    assert "1 more were killed before: java[4000]" in of_limit.reasons
    assert "what was largest in the cgroup then: anon 480 MiB, sock 1.00 MiB" in of_limit.reasons
    assert of_node.owner is not None
    assert of_node.owner.kind is OwnerKind.NODE


def test_kills_that_the_log_does_not_have_are_known_from_the_events() -> None:
    killed = ACCOUNT.model_copy(update={"window_oom_kills": 2})
    assert sentences(list(oom_kills(situation(containers=[killed])))) == [
        "The kernel killed 2 processes of container 4f1c4f1c4f1c for lack of memory in the window."
    ]
    assert len(list(oom_kills(situation(containers=[killed], oom_kills=[KILL])))) == 1
