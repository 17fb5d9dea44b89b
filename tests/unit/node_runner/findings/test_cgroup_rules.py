"""The findings about memory cgroups: removed ones, and containers near their limit."""

from dataclasses import replace

import pytest

from memdiag_api.containers import ChargedFile, ContainerAccount, RemovedCgroups, RemovedGroupShare
from memdiag_api.evidence import Breakdown, Check
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.container_near_limit import containers_near_limit
from memdiag_node.findings.measurements import Measurements
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
    assert found.size_bytes == 400 * MIB  # without the page cache
    assert found.claimed_bytes == {ClassName.PERCPU: 200 * MIB}
    assert found.sentence == (
        "2,000 removed memory cgroups are not freed, and hold 410 MiB: 200 MiB per-CPU memory (estimated), "
        "200 MiB structures (estimated), 10.0 MiB page cache."
    )
    assert found.owner is not None
    assert (found.owner.kind, found.owner.pod_uid) == (OwnerKind.POD, POD)
    assert found.freed_by is not None
    assert found.freed_by.size_bytes == 410 * MIB


@pytest.mark.parametrize(
    ("file", "anon", "size_bytes", "memory_class"),
    [
        (900 * MIB, 400 * MIB, 410 * MIB, ClassName.SHMEM),
        (900 * MIB, MIB, 911 * MIB, ClassName.FILE_CACHE),
        (0, 0, 10 * MIB, ClassName.PERCPU),
    ],
)
def test_page_cache_of_removed_cgroups_does_not_hide_what_stays(
    file: int, anon: int, size_bytes: int, memory_class: ClassName
) -> None:
    (found,) = removed_cgroups(groups(removed=2_000, own=10 * MIB, file=file, anon=anon))
    assert (found.size_bytes, found.memory_class) == (size_bytes, memory_class)


@pytest.mark.parametrize(
    ("file", "anon", "freed_bytes"),
    [(300 * MIB, 0, 310 * MIB), (300 * MIB, MIB, 300 * MIB), (None, None, None)],
)
def test_what_dropping_caches_frees_of_removed_cgroups(
    file: int | None, anon: int | None, freed_bytes: int | None
) -> None:
    """Other pages keep some of the cgroups, not the page cache of the others."""
    known = groups(removed=2_000, own=10 * MIB).measured.removed_cgroups
    assert known is not None
    charged = known.model_copy(update={"file_bytes": file, "anon_bytes": anon})
    (found,) = removed_cgroups(situation(removed_cgroups=charged))
    assert found.freed_by is not None
    assert found.freed_by.size_bytes == freed_bytes


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
