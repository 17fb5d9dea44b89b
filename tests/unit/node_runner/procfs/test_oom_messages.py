"""Killed processes in the kernel log: a recorded message, messages of other kernels, and names that mimic messages."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.procfs.oom_messages import OomMessage, parse_oom_messages

PAGE = 4096
KIB, MIB = 1024, 1 << 20
RECORDED = (Path(__file__).parents[3] / "fixtures/oom/linux-6.18-cgroup-v1.log").read_bytes()
POD = "/kubepods/burstable/pod8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"
CONTAINER = f"{POD}/{'4f1c' * 16}"

UNIFIED = f"""\
<4>[ 5000.000001] java invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=968
<6>[ 5000.000020] memory: usage 524288kB, limit 524288kB, failcnt 1234
<6>[ 5000.000021] swap: usage 0kB, limit 0kB, failcnt 0
<6>[ 5000.000022] Memory cgroup stats for {CONTAINER}:
<6>[ 5000.000030] anon 503316480
<6>[ 5000.000030] file 8192
<6>[ 5000.000030] sock 12582912
<6>[ 5000.000030] pgfault 99
<6>[ 5000.000040] Tasks state (memory values in pages):
<6>[ 5000.000050] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=cri-containerd-1.scope,mems_allowed=0,\
oom_memcg={POD},task_memcg={CONTAINER},task=java,pid=4711,uid=1000
<3>[ 5000.000060] Memory cgroup out of memory: Killed process 4711 (java) total-vm:9000000kB, anon-rss:491520kB, \
file-rss:100kB, shmem-rss:8kB, UID:1000 pgtables:1600kB oom_score_adj:968
""".encode()

NODE = b"""\
<4>[   70.100000][   T99] kworker/u8:1 invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE), order=0
<4>[   70.100010][   T99] Mem-Info:
<4>[   70.100011][   T99] active_anon:100 inactive_anon:2000 isolated_anon:0
<4>[   70.100011][   T99]  active_file:30 inactive_file:40 isolated_file:0
<4>[   70.100011][   T99]  slab_reclaimable:50 slab_unreclaimable:300000
<4>[   70.100011][   T99]  free:33 free_pcp:0 free_cma:0
<4>[   70.100012][   T99] Node 0 active_anon:400kB inactive_anon:8000kB
<6>[   70.100020][   T99] oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
task_memcg=/system.slice/x.service,task=x,pid=12,uid=0
<3>[   70.100030][   T99] Out of memory: Killed process 12 (x) total-vm:8kB, anon-rss:4kB, file-rss:0kB, \
shmem-rss:0kB, UID:0 pgtables:40kB oom_score_adj:0
"""


def parsed(log: bytes) -> list[OomMessage]:
    return parse_oom_messages(log, page_bytes=PAGE)


def test_the_recorded_message_of_this_kernel() -> None:
    (kill,) = parsed(RECORDED)
    assert kill.is_of_cgroup
    assert kill.comm.startswith(b"python")
    assert kill.limit_bytes == 50 * MIB
    assert kill.limited_path == kill.victim_path
    assert kill.limited_path.startswith(b"/memdiag-")
    assert kill.anon_bytes == pytest.approx(50 * MIB, rel=0.1)
    assert kill.classes_bytes["total_rss"] == pytest.approx(50 * MIB, rel=0.1)
    assert kill.log_seconds is not None


def test_the_limit_of_a_pod_with_the_figures_of_version_2() -> None:
    assert parsed(UNIFIED) == [
        OomMessage(
            log_seconds=5000.00006,
            is_of_cgroup=True,
            comm=b"java",
            pid=4711,
            anon_bytes=480 * MIB,
            file_bytes=100 * KIB,
            shmem_bytes=8 * KIB,
            page_table_bytes=1600 * KIB,
            limited_path=POD.encode(),
            victim_path=CONTAINER.encode(),
            limit_bytes=512 * MIB,
            limit_hits=1234,
            classes_bytes={"anon": 503316480, "file": 8192, "sock": 12582912},
        )
    ]


def test_a_node_without_memory_with_the_figures_of_all_nodes() -> None:
    (kill,) = parsed(NODE)
    assert not kill.is_of_cgroup
    assert (kill.pid, kill.comm, kill.limited_path, kill.limit_bytes) == (12, b"x", b"", None)
    assert kill.victim_path == b"/system.slice/x.service"
    assert kill.classes_bytes["slab_unreclaimable"] == 300000 * PAGE
    assert kill.classes_bytes["active_anon"] == 100 * PAGE
    assert "free_pcp" not in kill.classes_bytes


def test_each_kill_has_its_own_context() -> None:
    """The kernel leaves the context out if there were many messages: then it is not known."""
    last = UNIFIED.splitlines(keepends=True)[-1].replace(b"4711", b"4712").replace(b"000060", b"000070")
    first, second, third = parsed(UNIFIED + last + NODE)
    assert first.limit_bytes == 512 * MIB
    assert (second.is_of_cgroup, second.limit_bytes, second.limited_path, second.classes_bytes) == (True, None, b"", {})
    assert not third.is_of_cgroup


def test_all_victims_of_a_group_have_its_limit() -> None:
    group = f"<6>[ 5000.000070] Tasks in {CONTAINER} are going to be killed due to memory.oom.group set\n".encode()
    last = UNIFIED.splitlines(keepends=True)[-1].replace(b"4711", b"4712").replace(b"000060", b"000080")
    kills = parsed(UNIFIED + group + last)
    assert [(kill.pid, kill.limit_bytes, kill.victim_path) for kill in kills] == [
        (4711, 512 * MIB, CONTAINER.encode()),
        (4712, 512 * MIB, CONTAINER.encode()),
    ]


def test_without_time_stamps_and_users() -> None:
    (kill,) = parsed(
        b"<3>Memory cgroup out of memory: Killed process 7 (a) total-vm:9kB, anon-rss:8kB, file-rss:4kB, "
        b"shmem-rss:0kB\n"
    )
    assert (kill.log_seconds, kill.pid, kill.anon_bytes, kill.page_table_bytes) == (None, 7, 8 * KIB, None)


@pytest.mark.parametrize(
    "comm",
    [
        b") total-vm:1kB,",
        b"a,pid=1,uid=0",
        b"x\ny",
        b"\nOut of memory:",
        b"\n\n\n\n\n\n\n\n\n\n\n\n\n\n\n",
        b"\xff\x00\x1b[2J",
        b"Mem-Info:",
        b",task_memcg=/x",
        b"",
        b"oom-kill:",
    ],
)
def test_a_name_cannot_change_what_is_read(comm: bytes) -> None:
    """The kernel repeats the level and the time stamp at each line feed in a message."""
    kills = parsed(named(comm))
    assert [(kill.comm, kill.pid, kill.anon_bytes, kill.limit_bytes) for kill in kills] == [
        (comm, 4711, 480 * MIB, 512 * MIB)
    ]
    assert (kills[0].limited_path, kills[0].victim_path) == (POD.encode(), CONTAINER.encode())


@given(st.binary(max_size=15))
def test_no_name_hides_or_invents_a_kill(comm: bytes) -> None:
    assert [(kill.pid, kill.comm) for kill in parsed(named(comm))] == [(4711, comm)]


def named(comm: bytes) -> bytes:
    """The log with another name of the victim."""
    lines = []
    for line in UNIFIED.splitlines():
        prefix = line[: line.index(b"]") + 2]
        text = line[len(prefix) :].replace(b"java", comm)
        lines += [prefix + part for part in text.split(b"\n")]
    return b"\n".join(lines) + b"\n"


def test_a_path_in_another_message_cannot_invent_a_kill() -> None:
    """Some messages have names of files, which may have line feeds: further lines of a message begin no other."""
    fake = UNIFIED.splitlines()[-1].split(b"] ", 1)[1]
    log = b"<3>[ 9.000000] process '/tmp/a\n<3>[ 9.000000] " + fake + b"\n<3>[ 9.000000] ' failed\n"
    assert parsed(log) == []


def test_lines_of_user_space_are_not_read() -> None:
    """Facility 1 (/dev/kmsg of a process): levels from 8 on."""
    assert parsed(UNIFIED.replace(b"<3>", b"<11>")) == []


@given(st.binary(max_size=400), st.integers(0, len(UNIFIED)))
def test_any_bytes_in_the_log_are_survived(noise: bytes, where: int) -> None:
    parsed(UNIFIED[:where] + noise + UNIFIED[where:])
