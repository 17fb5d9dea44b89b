"""However a tracing process ends, none of its programs stays in the kernel."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.bpf import loaded_programs, programs_of, wait_until_gone

ROOT = Path(__file__).parents[2]

# Traces until it reads a command, which it then runs inside the trace.
_CHILD = """
import ctypes, os, resource, signal, sys
from memdiag_node.kernel.btf import Btf
from memdiag_node.trace.objects.object_trace import ObjectTrace
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.settings import TraceSettings
from memdiag_node.procfs.roots import HostRoots

signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
settings = TraceSettings(duration_seconds=60)
with PageTrace(settings, roots=HostRoots()) as trace, ObjectTrace(settings, roots=HostRoots()) as objects:
    objects.start()
    print("tracing", flush=True)
    how = sys.stdin.readline().strip()
    if how == "raise":
        raise RuntimeError("in the middle of a trace")
    if how == "exit":
        os._exit(4)
    if how == "crash":
        ctypes.string_at(0)
    if how == "crash in the compiler":
        from memdiag_node.kernel.loader import BpfObject
        from memdiag_node.trace.pages import page_trace
        import bcc
        bcc.lib.bpf_module_create_c_from_string = lambda *_: ctypes.string_at(0)
        BpfObject(page_trace._SOURCE, {})
    if how == "out of memory":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        hoard = [bytearray(1 << 26) for _ in range(1000)]
    if how == "finish":
        objects.read_out()
        trace.finish()
        print("finished", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def tracing_child() -> Iterator[tuple["subprocess.Popen[str]", set[int]]]:
    """A process that traces, and the ids of the programs that it loaded."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/node_runner:{ROOT}/operator"},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "tracing\n"
        programs = programs_of(child.pid)
        assert {"on_alloc", "on_free", "on_kmalloc", "on_kfree", "on_percpu_free", "on_vmap_area"} <= {
            loaded_programs()[number] for number in programs
        }
        yield child, programs
    finally:
        child.kill()
        child.communicate()


def send(child: "subprocess.Popen[str]", what: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{what}\n")
    child.stdin.flush()


@pytest.mark.parametrize("how", ["raise", "exit", "crash", "crash in the compiler", "out of memory"])
def test_a_process_that_ends_by_itself_leaves_no_program(how: str) -> None:
    with tracing_child() as (child, programs):
        send(child, how)
        assert child.wait(30) != 0
        assert wait_until_gone(programs) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_is_ended_leaves_no_program(number: signal.Signals) -> None:
    with tracing_child() as (child, programs):
        child.send_signal(number)
        child.wait(30)
        assert wait_until_gone(programs) == set()


def test_the_end_of_a_trace_leaves_no_program_while_the_process_continues() -> None:
    with tracing_child() as (child, programs):
        send(child, "finish")
        assert child.stdout is not None
        assert child.stdout.readline() == "finished\n"
        assert child.poll() is None
        assert wait_until_gone(programs) == set()


def test_the_kernels_oom_killer_leaves_no_program(tmp_path: Path) -> None:
    """The child is moved into a memory cgroup that is too small for it."""
    group = _memory_cgroup()
    limit = group / ("memory.limit_in_bytes" if (group / "memory.limit_in_bytes").exists() else "memory.max")
    try:
        with tracing_child() as (child, programs):
            (group / "cgroup.procs").write_text(str(child.pid))
            limit.write_text(str(64 << 20))
            send(child, "out of memory")
            assert child.wait(30) != 0
            assert wait_until_gone(programs) == set()
    finally:
        group.rmdir()


def _memory_cgroup() -> Path:
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        if (root / "memory.limit_in_bytes").exists() or "memory" in _controllers(root):
            group = root / f"memdiag-test-{os.getpid()}"
            group.mkdir()
            return group
    pytest.skip("no memory controller can be used here")


def _controllers(root: Path) -> str:
    path = root / "cgroup.subtree_control"
    return path.read_text() if path.exists() else ""
