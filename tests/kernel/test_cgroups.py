"""The accounts of containers, removed cgroups and OOM kills, against the files of the cgroups themselves."""

import mmap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.containers import ContainerAccount, OomKill, OomScope, RemovedCgroups
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_node.breakdown.surroundings import read_kernel_log
from memdiag_node.cgroups.layout import account_layout
from memdiag_node.cgroups.oom_kills import oom_kills
from memdiag_node.cgroups.reader import CgroupReader
from memdiag_node.findings.oom_groups import oom_groups
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.oom_messages import parse_oom_messages
from memdiag_node.procfs.roots import HostRoots
from planted.memory import MIB, PlantedMemory
from support.memory_cgroup import ContainerCgroup, another_container, container_cgroup, limit_cgroup, run_in_cgroup
from support.slab_census import opened_memory

CLOSE = 0.03
PLANTED_BYTES = 48 * MIB
REMOVED = 20
FREED_SECONDS = 60
WRITE = "import sys; file = open(sys.argv[1], 'wb'); [file.write(b'x' * (1 << 20)) for _ in range(int(sys.argv[2]))]"


@pytest.fixture(scope="module")
def new_reader(btf: Btf) -> Iterator[type]:
    at = account_layout(btf)
    with opened_memory(btf) as memory:

        class Reader(CgroupReader):
            def __init__(self) -> None:
                super().__init__(memory, at, HostRoots(), page_bytes=mmap.PAGESIZE)

            def account(self, container_id: str, pod_uid: str) -> ContainerAccount:
                found = [one.record for one in self.accounts(self.read())]
                (account,) = [one for one in found if (one.container_id, one.pod_uid) == (container_id, pod_uid)]
                return account

            def all_removed(self) -> RemovedCgroups:
                removed = self.removed(self.read(), charged_slab=None)
                assert removed is not None
                return removed

        yield Reader


def account_of(new_reader: type, cgroup: ContainerCgroup) -> ContainerAccount:
    found: ContainerAccount = new_reader().account(cgroup.container_id, cgroup.pod_uid)
    return found


@pytest.mark.parametrize(("kind", "figure"), [("anon", "anon_bytes"), ("file", "file_bytes"), ("shmem", "shmem_bytes")])
def test_memory_of_a_container_is_in_its_account(new_reader: type, kind: str, figure: str) -> None:
    with container_cgroup() as cgroup, PlantedMemory(kind, PLANTED_BYTES) as load:
        cgroup.add(load.pid)
        planted_bytes = load.plant()
        cgroup.statistics()  # reading it makes the kernel add up its counters
        account = account_of(new_reader, cgroup)
        files = cgroup.statistics()
        usage_bytes = cgroup.usage_bytes()
    assert account.usage_bytes == pytest.approx(usage_bytes, rel=CLOSE)
    assert getattr(account, figure) == pytest.approx(planted_bytes, rel=CLOSE)
    assert account.anon_bytes == pytest.approx(files["anon"], abs=MIB)
    assert account.shmem_bytes == pytest.approx(files["shmem"], abs=MIB)
    assert account.file_bytes == pytest.approx(files["file"] - files["shmem"], abs=MIB)
    assert account.inactive_file_bytes == pytest.approx(files["inactive_file"], abs=MIB)
    assert account.active_file_bytes == pytest.approx(files["active_file"], abs=MIB)
    assert account.working_set_bytes == account.usage_bytes - (account.inactive_file_bytes or 0)
    reclaimable_bytes = planted_bytes if kind == "file" else 0
    assert account.reclaimable_bytes == pytest.approx(reclaimable_bytes, abs=0.1 * PLANTED_BYTES)
    assert account.limit_bytes is None


def test_kernel_memory_of_a_container_is_in_its_account(new_reader: type) -> None:
    with container_cgroup() as cgroup, PlantedMemory("pipes", PLANTED_BYTES) as load:
        cgroup.add(load.pid)
        planted_bytes = load.plant()
        cgroup.statistics()
        account = account_of(new_reader, cgroup)
    assert account.kernel_bytes == pytest.approx(planted_bytes, rel=0.1)
    assert account.slab_bytes is not None
    assert account.slab_bytes < 0.1 * planted_bytes


def test_the_smallest_limit_above_a_container_counts(new_reader: type) -> None:
    """A pod's limit counts for its containers; the pod has an account of its own unless a container has its limit."""
    with container_cgroup() as cgroup:
        limit_cgroup(cgroup.path.parent, 64 * MIB)
        reader = new_reader()
        assert reader.account(cgroup.container_id, cgroup.pod_uid).limit_bytes == 64 * MIB
        assert reader.account("", cgroup.pod_uid).limit_bytes == 64 * MIB
        cgroup.limit(32 * MIB)
        assert reader.account(cgroup.container_id, cgroup.pod_uid).limit_bytes == 32 * MIB
        limit_cgroup(cgroup.path.parent, 32 * MIB)
        of_pod = [one.record for one in reader.accounts(reader.read()) if one.record.pod_uid == cgroup.pod_uid]
        assert [one.container_id for one in of_pod] == [cgroup.container_id]


def test_reaching_the_limit_is_counted_in_the_window(new_reader: type, tmp_path: Path) -> None:
    with container_cgroup() as cgroup:
        cgroup.limit(16 * MIB)
        reader = new_reader()
        reader.start()
        assert run_in_cgroup(cgroup.path, WRITE, str(tmp_path / "file"), "40") == 0
        account = reader.account(cgroup.container_id, cgroup.pod_uid)
        hits = cgroup.limit_hits()
    assert hits > 0
    assert (account.limit_hits, account.window_limit_hits) == (hits, hits)
    assert MIB < account.usage_bytes <= 16 * MIB
    assert (account.oom_kills, account.window_oom_kills) == (0, 0)


def test_a_killed_process_is_in_the_events_and_in_the_log(new_reader: type) -> None:
    with container_cgroup() as cgroup:
        cgroup.limit(50 * MIB)
        reader = new_reader()
        reader.start()
        assert run_in_cgroup(cgroup.path, f"b'x' * {200 * MIB}") != 0
        account = reader.account(cgroup.container_id, cgroup.pod_uid)
        assert cgroup.killed() == 1
    assert (account.oom_kills, account.window_oom_kills) == (1, 1)
    (kill,) = [one for one in _logged_kills() if one.container_id == cgroup.container_id]
    assert kill.scope is OomScope.CONTAINER
    assert kill.pod_uid == cgroup.pod_uid
    assert kill.comm.startswith("python")
    assert kill.limit_bytes == 50 * MIB
    assert kill.anon_bytes == pytest.approx(48 * MIB, rel=0.1)
    assert kill.seconds_ago is not None
    assert kill.seconds_ago < FREED_SECONDS
    assert max(kill.classes_bytes.items(), key=lambda item: item[1])[0] in {"anon", "total_rss"}


def test_the_kills_of_a_restarted_container_are_one_finding_about_its_pod() -> None:
    with container_cgroup() as first, another_container(first) as restarted:
        for cgroup in (first, restarted):
            cgroup.limit(50 * MIB)
            assert run_in_cgroup(cgroup.path, f"b'x' * {200 * MIB}") != 0
    kills = [one for one in _logged_kills() if one.pod_uid == first.pod_uid]
    assert [one.container_id for one in kills] == [restarted.container_id, first.container_id]
    (group,) = oom_groups(kills)
    assert group.owner == MemoryOwner(kind=OwnerKind.POD, pod_uid=first.pod_uid)
    assert group.where == f" of 2 containers of pod {first.pod_uid}"


def _logged_kills() -> list[OomKill]:
    log = read_kernel_log()
    assert log
    messages = parse_oom_messages(log, page_bytes=mmap.PAGESIZE)
    return oom_kills(messages, now_seconds=time.clock_gettime(time.CLOCK_MONOTONIC))


def test_removed_cgroups_are_counted_until_nothing_is_charged_to_them(new_reader: type, tmp_path: Path) -> None:
    with container_cgroup() as cgroup:
        cgroup.enable_memory_below()
        assert run_in_cgroup(cgroup.path, WRITE, str(tmp_path / "first"), "1") == 0  # so that Python's files are cached
        before = new_reader()
        before.start()
        for number in range(REMOVED):
            inner = cgroup.path / str(number)
            inner.mkdir()
            assert run_in_cgroup(inner, WRITE, str(tmp_path / str(number)), "1") == 0
            inner.rmdir()
        removed = before.all_removed()
        (share,) = [one for one in removed.shares if one.container_id == cgroup.container_id]
        assert share.groups == REMOVED
        assert share.pod_uid == cgroup.pod_uid
        assert share.charged_bytes == pytest.approx(REMOVED * MIB, rel=0.25)  # and a little of what they executed
        assert removed.removed_change is not None
        assert removed.removed >= REMOVED
        assert (removed.file_bytes or 0) + (removed.anon_bytes or 0) >= share.charged_bytes
        assert removed.percpu_bytes >= REMOVED * 1024
        for number in range(REMOVED):
            (tmp_path / str(number)).unlink()
        end = time.monotonic() + FREED_SECONDS  # they are freed by a worker of the kernel
        left = REMOVED
        while left > REMOVED / 2 and time.monotonic() < end:
            time.sleep(0.2)
            left = sum(one.groups for one in before.all_removed().shares if one.container_id == cgroup.container_id)
        assert left <= REMOVED / 2
