"""Killed processes in the document: recent ones, with their containers."""

from dataclasses import replace

import pytest

from memdiag_api import limits
from memdiag_api.containers import OomScope
from memdiag_node.cgroups.oom_kills import RECENT_SECONDS, oom_kills
from memdiag_node.procfs.oom_messages import OomMessage

POD, CONTAINER = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94", "4f1c" * 16
KILL = OomMessage(
    log_seconds=1000.0,
    is_of_cgroup=True,
    comm=b"java",
    pid=4711,
    anon_bytes=480,
    file_bytes=10,
    shmem_bytes=20,
    page_table_bytes=30,
    limited_path=f"/kubepods/pod{POD}".encode(),
    victim_path=f"/kubepods/pod{POD}/{CONTAINER}".encode(),
    limit_bytes=512,
    limit_hits=7,
    classes_bytes={"file": 1, "anon": 480, "sock": 0},
)


def test_a_kill_has_its_container_and_its_limit() -> None:
    (kill,) = oom_kills([KILL], now_seconds=1060.0)
    assert (kill.seconds_ago, kill.scope) == (60.0, OomScope.CONTAINER)
    assert (kill.container_id, kill.pod_uid, kill.limit_path) == (CONTAINER, POD, f"/kubepods/pod{POD}")
    assert (kill.comm, kill.pid, kill.limit_bytes, kill.limit_hits) == ("java", 4711, 512, 7)
    assert list(kill.classes_bytes.items()) == [("anon", 480), ("file", 1)]


@pytest.mark.parametrize(
    ("victim", "limited", "container", "pod"),
    [
        (b"", f"/kubepods/pod{POD}/{CONTAINER}".encode(), CONTAINER, POD),
        (b"", b"", "", ""),
        (b"/system.slice/x", b"", "", ""),
        (f"/kubepods/pod{POD}/{CONTAINER}/a\nb".encode(), b"", CONTAINER, POD),
    ],
)
def test_the_container_is_that_of_the_victim_or_of_the_limit(
    victim: bytes, limited: bytes, container: str, pod: str
) -> None:
    (kill,) = oom_kills([replace(KILL, victim_path=victim, limited_path=limited)], now_seconds=1060.0)
    assert (kill.container_id, kill.pod_uid) == (container, pod)


def test_names_cannot_control_a_terminal() -> None:
    (kill,) = oom_kills([replace(KILL, comm=b"\x1b[2J\n\xff", limited_path=b"/\x1b" + b"x" * 400)], now_seconds=1060.0)
    assert kill.comm.isprintable()
    assert kill.limit_path.isprintable()


def test_only_recent_kills_are_listed_latest_first() -> None:
    old, undated = replace(KILL, pid=1), replace(KILL, pid=3, log_seconds=None)
    late = [replace(KILL, pid=10 + number, log_seconds=90_000.0 + number) for number in range(limits.MAX_OOM_KILLS)]
    now_seconds = 1000.5 + RECENT_SECONDS
    assert [kill.pid for kill in oom_kills([old, undated], now_seconds=now_seconds)] == [3]
    assert [kill.pid for kill in oom_kills([old, *late], now_seconds=91_000.0)] == [one.pid for one in reversed(late)]


def test_a_time_stamp_in_the_future_is_now() -> None:
    """The clocks of the log and of the runner differ by a little."""
    assert oom_kills([KILL], now_seconds=999.0)[0].seconds_ago == 0
