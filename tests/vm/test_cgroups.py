"""The accounts of containers on each of Debian's kernels (version 2 of cgroups), against the files of the cgroups."""

from typing import Any

import pytest

from support.guest import WAIT_SECONDS
from support.guest_cgroups import KINDS, LIMIT_BYTES, PLANTED_BYTES, REMOVED, container_id
from support.guest_lab import Answers

MIB = 1 << 20
CLOSE = 0.03
FIGURES = {"anon": "anonBytes", "shmem": "shmemBytes", "pipes": "kernelBytes", "tcp_queues": "socketBytes"}
FILES = {"anonBytes": "anon", "shmemBytes": "shmem", "kernelBytes": "kernel", "socketBytes": "sock"}

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each kernel boots it


@pytest.fixture
def seen(guest: Answers) -> dict[str, Any]:
    found: dict[str, Any] = guest["cgroups"]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_load_is_in_the_account_of_its_container(seen: dict[str, Any], kind: str) -> None:
    container = container_id(KINDS.index(kind))
    account, files = seen["accounts"][container], seen["files"][container]
    assert account["usageBytes"] == pytest.approx(files["usage"], rel=CLOSE)
    assert account[FIGURES[kind]] >= (1 - CLOSE) * (PLANTED_BYTES if kind != "tcp_queues" else seen["planted"][kind])
    for figure, name in FILES.items():
        assert account[figure] == pytest.approx(files[name], abs=MIB), figure
    assert account["slabBytes"] == pytest.approx(files["slab"], abs=MIB)
    assert account["inactiveFileBytes"] == pytest.approx(files["inactive_file"], abs=MIB)
    assert "limitBytes" not in account


def test_the_limit_and_its_events(seen: dict[str, Any]) -> None:
    container = container_id(len(KINDS))
    account, files = seen["accounts"][container], seen["files"][container]
    assert account["limitBytes"] == LIMIT_BYTES
    assert account["limitHits"] == account["windowLimitHits"] == files["max"] > 0
    # One for the process with too much memory. The kernel may kill the writer of a large file, too, if its pages cannot
    # be written in time.
    assert account["oomKills"] == account["windowOomKills"] == files["oom_kill"] >= 1
    kills = [one for one in seen["kills"] if one["containerID"] == container]
    assert len(kills) == files["oom_kill"]
    kill = max(kills, key=lambda one: one["anonBytes"])
    assert kill["limitBytes"] == LIMIT_BYTES
    assert kill["anonBytes"] > 0.5 * LIMIT_BYTES
    assert max(kill["classesBytes"], key=lambda name: kill["classesBytes"][name]) == "anon"


def test_removed_cgroups(seen: dict[str, Any]) -> None:
    """A kernel that passes page cache to the cgroup above, too, frees them soon, and they keep nothing until then."""
    groups = {container_id(16 + number) for number in range(REMOVED)}
    shares = [one for one in seen["removed"]["shares"] if one["containerID"] in groups]
    assert len(shares) == seen["removed"]["removedChange"]
    assert len(shares) in {0, REMOVED}
    assert {one["groups"] for one in shares} <= {1}
    charged_bytes = [one["chargedBytes"] for one in shares]
    keep_theirs = charged_bytes == pytest.approx([MIB] * len(shares), rel=0.25)
    assert keep_theirs or charged_bytes == [0] * len(shares)
