"""The runner on every Debian kernel, and on the machine's own: the same planted loads, the same figures, and the
effects of what a kernel lacks.

Each guest has cgroup v2, randomised and hidden kernel addresses, no kernel headers and no tracefs. It runs
tests/support/guest_program.py; this file checks the results.
"""

import json
import re
from typing import Any

import pytest

from memdiag_api.capabilities import RUNNER_CAPABILITIES
from memdiag_api.evidence import (
    AllocationUnit,
    Check,
    Context,
    Evidence,
    Holder,
    HolderKind,
    NeedState,
    Stack,
    Trend,
    VerdictKind,
)
from support.guest import NATIVE, WAIT_SECONDS, GuestRun, run_here
from support.guest_pool import GuestPool
from support.guest_program import CONTAINER_ID, PLANTER_UID, POD_UID
from support.slab_comparison import check_caches

GUESTS = {"bookworm": "6.1.", "trixie": "6.12.", "sid": "7."}
WITH_PAGE_POOLS = {"sid"}  # whose virtio_net takes its buffers from page pools: Linux 7.1 or 7.2
WITH_KFENCE = {"trixie", "sid"}
LARGE_KMALLOC_BYTES = 2 << 20

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each kernel boots it
only_guests = pytest.mark.parametrize("suite", GUESTS, indirect=True)


@pytest.fixture(scope="module", params=[*GUESTS, NATIVE])
def suite(request: pytest.FixtureRequest) -> str:
    """A Debian release, or the machine's own kernel."""
    return str(request.param)


@pytest.fixture(scope="module")
def guest(
    suite: str, guest_pool: GuestPool, tmp_path_factory: pytest.TempPathFactory, guests: list[GuestRun]
) -> GuestRun:
    run: GuestRun
    if suite == NATIVE:
        guest_pool.wait()  # this machine's memory is measured
        run = run_here(tmp_path_factory.mktemp(suite))
    else:
        run = guest_pool.result(("suite", suite))
    guests.append(run)
    return run


def step(guest: GuestRun, name: str) -> dict[str, Any]:
    report = guest.reports[name]
    assert "error" not in report, report["error"]
    return report


def document(report: dict[str, Any]) -> Evidence:
    assert report["status"] == 0, report["stderr"]
    return Evidence.model_validate_json(report["stdout"])


@pytest.fixture(scope="module")
def truths(guest: GuestRun) -> dict[str, Any]:
    found: dict[str, Any] = step(guest, "planted")["truths"]
    return found


@pytest.fixture(scope="module")
def evidence(guest: GuestRun) -> Evidence:
    return document(step(guest, "planted"))


def holder_of(evidence: Evidence, truth: dict[str, Any]) -> Holder:
    (holder,) = [one for one in evidence.holders if one.socket is not None and one.socket.inode == truth["inode"]]
    return holder


def allocated_by(evidence: Evidence, pid: int, unit: AllocationUnit = AllocationUnit.PAGES) -> list[Stack]:
    """The stacks of a process; on the machine's own kernel there are other processes."""
    return [one for one in evidence.stacks if one.unit is unit and pid in {process.pid for process in one.processes}]


def through(stack: Stack, function: str) -> bool:
    return any(function in frame for frame in stack.frames)


@only_guests
def test_the_guest_is_what_this_test_is_about(guest: GuestRun, suite: str) -> None:
    host = step(guest, "host")
    assert host["release"].startswith(GUESTS[suite])
    assert host["has_cgroup_v2"]
    assert {"memory", "cpu", "pids"} <= set(host["controllers"])
    assert not host["has_headers"]
    assert not host["has_tracefs"]
    assert "CONFIG_RANDOMIZE_BASE=y" in guest.configuration.splitlines()
    assert "nokaslr" not in host["command_line"]


# include/uapi/linux/capability.h
CAPABILITY_BITS = {"SYSLOG": 34, "PERFMON": 38, "BPF": 39}


def test_the_measurement_had_three_capabilities_and_no_more(guest: GuestRun) -> None:
    """All other tests of this file judge what was found with these."""
    assert set(RUNNER_CAPABILITIES) == set(CAPABILITY_BITS)
    effective = int(step(guest, "planted")["effective_capabilities"], 16)
    assert effective == sum(1 << bit for bit in CAPABILITY_BITS.values())


def test_nothing_is_missing(guest: GuestRun) -> None:
    preflight = step(guest, "preflight")
    assert preflight["status"] == 0
    assert unmet_needs(preflight) == expected_of_the_log(guest), preflight["stdout"]


def unmet_needs(preflight: dict[str, Any]) -> dict[str, str]:
    """State by name of what preflight does not call met."""
    lines = [line.partition(":")[0].split(maxsplit=1) for line in preflight["stdout"].splitlines() if line[0] != " "]
    return {name: state for state, name in lines if state != "Met"}


def expected_of_the_log(guest: GuestRun) -> dict[str, str]:
    """The machine itself may have run long enough for its kernel log to lose the boot messages."""
    return {} if step(guest, "host")["log_reaches_boot"] else {"kernel log": "Degraded"}


def test_objects_are_traced_where_the_kernel_has_the_tracepoints(evidence: Evidence, suite: str) -> None:
    assert evidence.trace is not None
    without_vmalloc = suite == "bookworm"  # alloc_vmap_area: Linux 6.2
    assert evidence.trace.object_classes == ["Slab", "Percpu", *([] if without_vmalloc else ["Vmalloc"])]
    assert evidence.trace.counters.recorded_objects > 0
    assert evidence.trace.counters.lost_objects == 0


def test_slab_objects_have_their_cache_and_process(evidence: Evidence, truths: dict[str, Any]) -> None:
    """The datagrams that are sent in the window and not read."""
    packets = [
        stack for stack in allocated_by(evidence, truths["pid"], AllocationUnit.OBJECTS) if through(stack, "alloc_skb")
    ]
    assert packets
    for stack in packets:
        assert (stack.memory_class, stack.context) == ("Slab", Context.PROCESS)
        assert stack.slab_cache  # caches of objects of one size are merged, under the name of any of them


@pytest.mark.parametrize("name", ["stuck", "window", "datagrams", "window_datagrams"])
def test_a_queue_is_found_with_its_process_fd_pod_and_exact_bytes(
    evidence: Evidence, truths: dict[str, Any], name: str
) -> None:
    holder = holder_of(evidence, truths[name])
    (owner,) = holder.owners
    assert (owner.pid, owner.uid, owner.fds, owner.pod_uid, owner.container_id) == (
        truths["pid"], PLANTER_UID, [truths[name]["fd"]], POD_UID, CONTAINER_ID,
    )  # fmt: skip
    assert owner.comm == truths["comm"]
    assert holder.unread_bytes == truths[name]["unread_bytes"]
    assert holder.pinned_bytes == pytest.approx(truths[name].get("pinned_bytes", holder.pinned_bytes), rel=0.02)


def test_the_join_finds_what_was_sent_in_the_window(evidence: Evidence, truths: dict[str, Any]) -> None:
    (stack,) = [
        one
        for one in allocated_by(evidence, truths["pid"])
        if through(one, "tcp_sendmsg") and one.memory_class == "AllocPage"
    ]
    planted_bytes = truths["window"]["pinned_bytes"]
    assert stack.outstanding_bytes == pytest.approx(planted_bytes, rel=0.02)
    assert stack.explained_bytes >= 0.95 * planted_bytes
    holder = evidence.holders[stack.held_by[0].holder]
    assert holder == holder_of(evidence, truths["window"])


@only_guests
def test_what_came_through_a_network_driver_is_found_with_the_drivers_stack(
    evidence: Evidence, truths: dict[str, Any]
) -> None:
    holder = holder_of(evidence, truths["card"])
    (owner,) = holder.owners
    assert (owner.pid, owner.fds) == (truths["card_pid"], [truths["card"]["fd"]])
    assert holder.unread_bytes == truths["card"]["unread_bytes"]
    assert holder.pinned_bytes >= holder.unread_bytes
    stacks = [one for one in evidence.stacks if through(one, "[virtio_net]") and one.memory_class == "AllocPage"]
    assert {one.context for one in stacks} == {Context.SOFTIRQ}
    found_bytes = sum(
        held.size_bytes for one in stacks for held in one.held_by if evidence.holders[held.holder] == holder
    )
    # The bound is for the trace: packets arrive in interrupts, even while its own programs run, and everything that the
    # driver allocates there must be recorded (docs/trace.md). Buffers from before the window have no stack, but the
    # connection before this one has used them up (guest_program.RING_BYTES).
    assert found_bytes >= 0.95 * holder.pinned_bytes


@only_guests
def test_where_the_driver_has_page_pools_they_are_listed_and_what_is_queued_is_taken_off(
    evidence: Evidence, truths: dict[str, Any], suite: str
) -> None:
    pools = [one for one in evidence.holders if one.kind is HolderKind.PAGE_POOL and "of eth0" in one.description]
    assert bool(pools) == (suite in WITH_PAGE_POOLS)
    if pools:
        (pool,) = pools
        assert pool.pinned_bytes > 0  # buffers that wait for packets
        queued_bytes = sum(holder_of(evidence, truths[name]).pinned_bytes for name in ("card", "ring"))
        assert pool.charge_bytes == pool.pinned_bytes + queued_bytes


def test_pipes_are_found_with_their_process_and_exact_bytes(evidence: Evidence, truths: dict[str, Any]) -> None:
    holders = [one for one in evidence.holders if truths["pipes_pid"] in {owner.pid for owner in one.owners}]
    pipes = [one for one in holders if one.unread_bytes]  # the empty ones are for commands to the process
    assert {one.kind for one in pipes} == {HolderKind.PIPE}
    assert sum(one.unread_bytes for one in pipes) == truths["pipes_bytes"]
    assert sum(one.pinned_bytes for one in pipes) == truths["pipes_bytes"]


def test_pipes_are_traced(evidence: Evidence, truths: dict[str, Any]) -> None:
    stacks = [one for one in allocated_by(evidence, truths["pipes_pid"]) if through(one, "pipe_write")]
    assert sum(one.outstanding_bytes for one in stacks) == pytest.approx(truths["pipes_bytes"], rel=0.02)
    assert sum(one.explained_bytes for one in stacks) >= 0.95 * truths["pipes_bytes"]
    assert {one.trend for one in stacks} <= {Trend.PINNED, Trend.GROWING}


@pytest.fixture(scope="module")
def slabs(guest: GuestRun) -> dict[str, Any]:
    """The census of slabs beside the kernel's own files."""
    return step(guest, "slab census")


def test_the_census_of_slabs_counts_planted_objects_exactly(slabs: dict[str, Any]) -> None:
    assert slabs["counted"] == slabs["planted"]
    assert slabs["sees_cpu_lists"]


def test_the_sum_of_slabs_is_the_kernels(slabs: dict[str, Any]) -> None:
    """Except for large kmalloc, which meminfo counts as slab: two guests have 0.8 MiB of it after boot.

    Where the kernel marks its blocks, it is counted; a machine that has run for hours may have more.
    """
    difference_bytes = slabs["meminfo_bytes"] - slabs["slab_bytes"]
    most_bytes = max(LARGE_KMALLOC_BYTES, slabs["large_kmalloc_bytes"] or 0)
    assert -0.01 * slabs["meminfo_bytes"] <= difference_bytes <= most_bytes + 0.01 * slabs["meminfo_bytes"]


def test_caches_have_as_many_objects_as_slabinfo_says(slabs: dict[str, Any]) -> None:
    check_caches(slabs)


@only_guests
def test_objects_that_kfence_guards_are_counted_too(slabs: dict[str, Any], suite: str) -> None:
    """Otherwise the planted objects would not be complete; bookworm's kernel is built without it."""
    assert slabs["has_kfence"] == (suite in WITH_KFENCE)
    assert bool(slabs["guarded_pages"]) == slabs["has_kfence"]


def test_nothing_was_lost(evidence: Evidence) -> None:
    assert evidence.trace is not None
    counters = evidence.trace.counters
    assert (counters.lost_records, counters.lost_stacks, counters.unnamed_blocks, counters.lost_cgroups) == (0, 0, 0, 0)


@only_guests  # on the machine itself other queues may change while they are walked
def test_every_queue_was_walked_to_its_end(evidence: Evidence) -> None:
    assert evidence.coverage is not None
    assert evidence.coverage.incomplete_queues == 0


def test_call_stacks_have_names_and_no_addresses(evidence: Evidence) -> None:
    frames = [frame for one in evidence.stacks for frame in one.frames]
    assert frames
    assert all(re.fullmatch(r"[\w.]+\+0x[0-9a-f]+( \[\w+\])?", frame) for frame in frames), frames


def test_the_verdict_names_the_process_that_was_stuck(evidence: Evidence, truths: dict[str, Any]) -> None:
    assert evidence.verdict.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert f"[{truths['pid']}]" in evidence.verdict.sentence


def test_without_btf_the_breakdown_remains_and_says_why(guest: GuestRun) -> None:
    found = document(step(guest, "no BTF"))
    assert found.checks == [Check.BREAKDOWN, Check.OWNERS]
    assert any("AllocPageTrace was skipped" in note and "no BTF" in note for note in found.notes)


def test_without_rights_it_says_which_ones(guest: GuestRun) -> None:
    preflight = step(guest, "no rights")
    assert preflight["status"] == 3
    assert "Missing   eBPF programs" in preflight["stdout"]
    assert "capabilities BPF, PERFMON and SYSLOG" in preflight["stdout"]


@pytest.mark.parametrize(
    ("capability", "unmet"),
    [
        ("BPF", {"eBPF programs": "Missing"}),
        ("PERFMON", {"eBPF programs": "Missing"}),
        ("SYSLOG", {"kernel log": "Degraded"}),  # function names do not need it
    ],
)
def test_each_capability_is_needed(guest: GuestRun, capability: str, unmet: dict[str, str]) -> None:
    if capability == "SYSLOG" and not step(guest, "host")["dmesg_restrict"]:
        unmet = {}  # on the machine itself everybody may read the log
    preflight = step(guest, "one capability less")[capability]
    assert unmet_needs(preflight) == unmet | expected_of_the_log(guest), preflight["stdout"]


def test_where_seccomp_denies_bpf_it_says_so(guest: GuestRun) -> None:
    refused = step(guest, "no bpf(2)")
    assert refused["status"] == 3
    assert "seccomp profile must allow bpf(2)" in json.dumps(refused["stderr"])


def test_what_was_let_go_is_named_no_longer(guest: GuestRun, truths: dict[str, Any]) -> None:
    found = document(step(guest, "no page flags"))
    assert truths["pid"] not in {owner.pid for one in found.holders for owner in one.owners}
    assert f"[{truths['pid']}]" not in found.verdict.sentence


def test_without_page_flags_the_trace_is_made_and_says_so(guest: GuestRun) -> None:
    needs = {one.name: one for one in document(step(guest, "no page flags")).needs}
    assert needs["page flags"].state is NeedState.DEGRADED
    assert needs["slab frames"].state is NeedState.MISSING
    assert needs["slab frames"].checks == [Check.KERNEL_OBJECTS]
    assert all("CONFIG_PROC_PAGE_MONITOR" in needs[name].remedy for name in ("page flags", "slab frames"))


@only_guests
def test_lockdown_for_integrity_does_no_harm_and_the_memory_is_back(guest: GuestRun) -> None:
    found = document(step(guest, "no page flags"))
    assert set(found.checks) == set(Check) - {Check.KERNEL_OBJECTS}
    assert found.verdict.kind is VerdictKind.INCONCLUSIVE, found.verdict
    assert "KernelObjects was not run" in found.verdict.sentence


@only_guests
def test_lockdown_for_confidentiality_is_named(guest: GuestRun) -> None:
    preflight = step(guest, "confidentiality")
    assert preflight["status"] == 3, preflight["stdout"]
    assert "locked down for confidentiality" in preflight["stdout"]
