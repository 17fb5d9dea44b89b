"""The case that memdiag is made for: an nginx that stops reading, behind a real network driver, on a node in QEMU.

The true values come from other sources than memdiag: the clients' own count, ss, and free memory before and after the
worker's end.
"""

import re
from typing import Any

import pytest

from local_cluster.case_outcome import Outcome
from support.guest_case import CASE_SECONDS

BLOCK_BYTES = 32 << 10  # how the driver allocates received data

pytestmark = pytest.mark.timeout(CASE_SECONDS + 200)  # the first test waits for the whole story


def condition(diagnosis: dict[str, Any], kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = next(one for one in diagnosis["status"]["conditions"] if one["type"] == kind)
    return found["status"], found["reason"]


@pytest.fixture(scope="module")
def result(outcome: Outcome) -> dict[str, Any]:
    """The node's entry in the status."""
    (result,) = outcome.diagnosis["status"]["results"]
    found: dict[str, Any] = result
    return found


@pytest.fixture(scope="module")
def holders(outcome: Outcome, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The worker's sockets among the status's top holders."""
    return [one for one in result["topHolders"] if one.get("pid") == outcome.worker_pid]


def test_few_unread_bytes_took_much_memory(outcome: Outcome) -> None:
    """The premise: without it the other tests would prove nothing."""
    unread = sum(outcome.full.unread.values())
    assert unread == outcome.sent
    assert outcome.before.free - outcome.full.free > 20 * unread


def test_the_status_says_that_a_stuck_socket_pins_memory(outcome: Outcome) -> None:
    assert condition(outcome.diagnosis, "Succeeded") == ("True", "Completed")
    assert condition(outcome.diagnosis, "LeakDetected") == ("True", "PinnedByUnreadSocket")


def test_the_suspect_is_the_worker_in_its_pod_and_container(
    outcome: Outcome, result: dict[str, Any], holders: list[dict[str, Any]]
) -> None:
    assert result["nodeName"] == "guest1"
    assert all(
        (one["namespace"], one["pod"], one["container"], one["comm"]) == ("web", "nginx", "server", "nginx")
        for one in holders
    )
    words = ("web/nginx", "server", f"nginx[{outcome.worker_pid}]")
    assert all(word in outcome.diagnosis["status"]["suspect"] for word in words), outcome.diagnosis["status"]["suspect"]
    first = result["pinnedByPod"][0]
    assert (first["namespace"], first["pod"], first["container"]) == ("web", "nginx", "server")


def test_each_upload_is_named_by_its_fd_with_its_unread_bytes(outcome: Outcome, holders: list[dict[str, Any]]) -> None:
    """The clients keep sending while sockets are scanned: memdiag's figure is between those before and after."""
    found = {str(fd): one["unreadBytes"] for one in holders for fd in one["fds"]}
    assert found.keys() == outcome.full.unread.keys()
    assert all(outcome.planted.unread[fd] <= unread <= outcome.full.unread[fd] for fd, unread in found.items())
    assert outcome.sent_before <= outcome.unread <= outcome.sent


def test_allocpage_has_what_the_workers_end_gives_back(outcome: Outcome, result: dict[str, Any]) -> None:
    """Per unread byte: until the worker's end more packets arrived than memdiag saw."""
    (rerun,) = outcome.rerun["status"]["results"]
    given_back = (outcome.after.free - outcome.full.free) / sum(outcome.full.unread.values())
    grown = (result["allocPageBytes"] - rerun["allocPageBytes"]) / outcome.unread
    assert grown == pytest.approx(given_back, rel=0.15)
    assert outcome.pinned / outcome.unread == pytest.approx(given_back, rel=0.15)


def test_more_is_pinned_than_the_kernel_charges_and_much_more_than_is_unread(outcome: Outcome) -> None:
    assert outcome.pinned > 20 * outcome.unread
    assert outcome.pinned > outcome.full.tcp


def test_the_drivers_receive_path_allocated_it_and_the_join_finds_it_in_the_sockets(
    outcome: Outcome, result: dict[str, Any]
) -> None:
    stack = outcome.driver_stack
    assert stack["context"] == "SoftIRQ"
    assert any("virtnet_poll" in frame for frame in stack["frames"])
    assert stack["outstandingBytes"] >= 100 * BLOCK_BYTES
    assert outcome.join_share >= 0.8
    (shown,) = [one for one in result["topStacks"] if one["frames"][0] == stack["frames"][0]]
    assert sum(held["share"] for held in shown["heldBy"]) >= 0.8
    assert all("web/nginx" in held["holder"] for held in shown["heldBy"])


def test_usual_tools_show_nothing_of_that_size(outcome: Outcome) -> None:
    """No process and no slab has the missing memory, which is what the story's administrators saw."""
    missing_mib = (outcome.before.free - outcome.planted.free) / 2**20
    top, _, slabtop, sockstat, ss = outcome.tools.values()
    processes = re.findall(r"^ *\d+ +\S+ +\S+ +\S+ +\d+ +(\d+) +(\d+) ", top, re.MULTILINE)
    assert processes
    # Shared pages are those of files: two thirds of the kubelet's, which has as much in all as is missing.
    assert max(int(resident) - int(shared) for resident, shared in processes) / 1024 < missing_mib
    slabs = re.search(r"Active / Total Size .*: [\d.]+K / ([\d.]+)K", slabtop)
    assert slabs is not None
    assert float(slabs[1]) / 1024 < missing_mib
    assert "TCP: inuse" in sockstat
    assert "skmem:(r" in ss


def test_when_the_worker_is_gone_a_rerun_finds_no_leak(outcome: Outcome) -> None:
    assert outcome.rerun["status"]["runID"] != outcome.diagnosis["status"]["runID"]
    assert condition(outcome.rerun, "Succeeded") == ("True", "Completed")
    assert condition(outcome.rerun, "LeakDetected") == ("False", "NoLeak"), outcome.rerun["status"]["summary"]
