"""A check that fails does not affect the results of the others: it is reported as a need of that check."""

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from memdiag_api.evidence import Check, Evidence, Need, NeedState, VerdictKind
from memdiag_node.breakdown.reading import MemoryReading, take_readings
from memdiag_node.capture import MeasurementError, UnsupportedError
from memdiag_node.kernel.errors import BpfError
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.sockets import source as socket_source
from memdiag_node.sockets.scan import SocketScan
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.time_budget import Stop
from memdiag_node.trace.objects import object_trace
from memdiag_node.trace.pages import page_trace
from memdiag_node.trace.pages.page_trace import PageTrace

WRITES_NOWHERE = "\n  volatile u64 *nowhere = (u64 *)bpf_ktime_get_ns();\n  *nowhere = 1;\n"
"""The kernel's verifier refuses: "invalid mem access 'scalar'"."""

RUNNER = """
import sys
from pathlib import Path
import {module} as subject
subject._SOURCE = Path({source!r})
from memdiag_node.cli import main
sys.exit(main())
"""


def evidence_of(*checks: Check, roots: HostRoots | None = None) -> Evidence:
    settings = Settings(run_id="failed", node_name="here", checks=checks or tuple(Check), duration_seconds=0.5)
    return measure(settings, roots=roots or HostRoots(), stop=Stop(), progress=lambda _: None)


def lacking(evidence: Evidence) -> Need:
    """The only need that is missing."""
    (need,) = [need for need in evidence.needs if need.state is NeedState.MISSING]
    assert need.remedy
    assert any(note.startswith(f"{need.checks[0].value} was skipped: ") for note in evidence.notes)
    return need


def refused(source: Path, function: str, folder: Path) -> Path:
    """A copy of `source` in `folder`, with a line in `function` that the verifier refuses."""
    before, name, after = source.read_text().partition(f"int {function}(")
    head, brace, body = after.partition("{")
    assert brace
    package = folder / source.parent.name
    package.mkdir()
    for header in source.parent.parent.glob("*.bpf.h"):
        shutil.copy(header, folder)
    for header in source.parent.glob("*.bpf.h"):
        shutil.copy(header, package)
    copy = package / source.name
    copy.write_text(f"{before}{name}{head}{{{WRITES_NOWHERE}{body}")
    return copy


def run_with(subject: ModuleType, source: Path) -> tuple[Evidence, str]:
    """What a runner in a process of its own delivers and logs if the programs of a module come from `source`."""
    script = RUNNER.format(module=subject.__name__, source=str(source))
    done = subprocess.run(
        [sys.executable, "-c", script, "--duration", "1s", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return Evidence.model_validate_json(done.stdout), done.stderr


def not_c(folder: Path) -> Path:
    """The trace's source, changed so that it does not compile."""
    source = folder / page_trace._SOURCE.name
    source.write_text("this is not C")
    return source


@pytest.mark.parametrize(
    ("subject", "function", "failed"),
    [
        (page_trace, "on_alloc", Check.ALLOC_PAGE_TRACE),
        (socket_source, "describe", Check.SOCKET_QUEUES),
    ],
)
def test_a_program_that_the_verifier_refuses_fails_only_its_own_check(
    tmp_path: Path, subject: ModuleType, function: str, failed: Check
) -> None:
    source = refused(subject._SOURCE, function, tmp_path)
    evidence, log = run_with(subject, source)
    need = lacking(evidence)
    assert need.checks == [failed]
    assert f"{source.name}: the kernel refuses {function}: " in need.detail
    assert "\n" not in need.detail
    assert set(evidence.checks) == set(Check) - {failed}
    assert evidence.breakdown is not None
    assert (evidence.trace is None) == (failed is Check.ALLOC_PAGE_TRACE)
    assert (evidence.coverage is None) == (failed is Check.SOCKET_QUEUES)
    assert "invalid mem access" in log  # the verifier's own message, for the user


def test_if_objects_cannot_be_traced_pages_still_are(tmp_path: Path) -> None:
    source = refused(object_trace._SOURCE, "on_kmalloc", tmp_path)
    evidence, _ = run_with(object_trace, source)
    (need,) = [need for need in evidence.needs if need.state is NeedState.DEGRADED and "on_kmalloc" in need.detail]
    assert need.checks == [Check.ALLOC_PAGE_TRACE]
    assert set(evidence.checks) == set(Check)
    assert evidence.trace is not None
    assert evidence.trace.object_classes == []
    assert evidence.trace.counters.events_seen > 0
    assert evidence.verdict.kind is not VerdictKind.NO_LEAK


def test_a_program_that_does_not_compile_fails_only_its_own_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_trace, "_SOURCE", not_c(tmp_path))
    evidence = evidence_of(Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE)
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert "page_trace.bpf.c does not compile" in lacking(evidence).detail


@pytest.fixture
def sys_with_btf(tmp_path: Path) -> Callable[[bytes, bytes], HostRoots]:
    """A view of /sys whose BTF has another name in place of one: both of the same length."""

    def make(name: bytes, other: bytes) -> HostRoots:
        for path in Path("/sys").iterdir():
            if path.name != "kernel":
                (tmp_path / path.name).symlink_to(path)
        (tmp_path / "kernel/btf").mkdir(parents=True)
        for path in Path("/sys/kernel").iterdir():
            if path.name != "btf":
                (tmp_path / "kernel" / path.name).symlink_to(path)
        btf = Path("/sys/kernel/btf/vmlinux").read_bytes()
        assert len(name) == len(other)
        assert btf.count(b"\0" + name + b"\0") == 1
        (tmp_path / "kernel/btf/vmlinux").write_bytes(btf.replace(b"\0" + name + b"\0", b"\0" + other + b"\0"))
        return HostRoots(sys=tmp_path)

    return make


@pytest.mark.parametrize(
    ("struct", "name", "failed"),
    [
        ("sock", b"sk_error_queue", Check.SOCKET_QUEUES),
        ("cgroup_subsys_state", b"cgroup_subsys_state", Check.ALLOC_PAGE_TRACE),
    ],
)
def test_a_kernel_without_a_field_lacks_the_check_that_needs_it(
    sys_with_btf: Callable[[bytes, bytes], HostRoots], struct: str, name: bytes, failed: Check
) -> None:
    evidence = evidence_of(Check.BREAKDOWN, failed, roots=sys_with_btf(name, name[:-1] + b"?"))
    assert list(evidence.checks) == [Check.BREAKDOWN]
    need = lacking(evidence)
    assert need.checks == [failed]
    assert f"struct {struct}" in need.detail


def test_without_the_helper_for_sockets_the_scan_is_not_started(
    sys_with_btf: Callable[[bytes, bytes], HostRoots],
) -> None:
    """Linux 5.8 to 5.10: these have the iterator over files, but not bpf_sock_from_file."""
    evidence = evidence_of(roots=sys_with_btf(b"BPF_FUNC_sock_from_file", b"BPF_FUNC_sock_from_fil?"))
    assert set(evidence.checks) == set(Check) - {Check.SOCKET_QUEUES}
    need = lacking(evidence)
    assert (need.name, need.checks) == ("BPF iterators", [Check.SOCKET_QUEUES])
    assert "bpf_sock_from_file" in need.detail


def test_when_frame_0_cannot_be_found_the_trace_is_skipped(tmp_path: Path) -> None:
    """A kpageflags that reports no frame as anonymous: no start fits."""
    for path in Path("/proc").iterdir():
        if path.name != "kpageflags":
            (tmp_path / path.name).symlink_to(path)
    size_bytes = 8 * read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)[-1].end
    with (tmp_path / "kpageflags").open("wb") as flags:
        os.truncate(flags.fileno(), size_bytes)
    evidence = evidence_of(Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE, roots=HostRoots(proc=tmp_path))
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert "frame numbers of struct pages" in lacking(evidence).detail


def raising(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


FULL = BpfError("page_trace.bpf.c: the map stacks cannot be written: Argument list too long", 7)


def test_a_trace_that_cannot_be_read_leaves_the_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageTrace, "finish", raising(FULL))
    evidence = evidence_of(Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE)
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert lacking(evidence).detail == f"reading the result failed: {FULL}"


def test_a_full_table_ends_the_window_and_keeps_what_was_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageTrace, "advance", raising(FULL))
    evidence = evidence_of(Check.BREAKDOWN, Check.ALLOC_PAGE_TRACE)
    assert evidence.trace is not None
    assert evidence.window.interrupted
    (need,) = [need for need in evidence.needs if need.name == "page-allocation trace"]
    assert need.state is NeedState.DEGRADED
    assert str(FULL) in need.detail


def test_a_last_scan_that_fails_leaves_the_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, scans = SocketScanner.scan, []

    def fail_at_the_second(scanner: SocketScanner, *_: object, **__: object) -> SocketScan:
        scans.append(scanner)
        if len(scans) > 1:
            raise BpfError("describe: the program cannot be run: Input/output error", 5)
        return scan(scanner)

    monkeypatch.setattr(SocketScanner, "scan", fail_at_the_second)
    evidence = evidence_of(Check.BREAKDOWN, Check.SOCKET_QUEUES)
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert "the last scan of all sockets failed: describe: " in lacking(evidence).detail


def test_without_a_first_scan_no_socket_can_be_stuck_so_the_check_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SocketScanner, "scan", raising(BpfError("describe: the program cannot be run", 5)))
    evidence = evidence_of(Check.BREAKDOWN, Check.SOCKET_QUEUES)
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert "the first scan of all sockets failed: describe: " in lacking(evidence).detail


def test_other_holders_that_cannot_be_searched_are_reported_as_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SocketScanner, "max_blocks", property(raising(IndexError("out of bounds"))))
    evidence = evidence_of(Check.SOCKET_QUEUES)
    assert list(evidence.checks) == [Check.SOCKET_QUEUES]
    assert evidence.coverage is not None
    assert "pipes: IndexError: out of bounds" in evidence.coverage.not_seen


def test_a_census_that_fails_leaves_the_breakdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameTable, "read", raising(OSError(5, "Input/output error")))
    evidence = evidence_of(Check.BREAKDOWN)
    assert evidence.breakdown is not None
    assert evidence.census is None
    (need,) = [need for need in evidence.needs if need.name == "breakdown"]
    assert need.state is NeedState.DEGRADED
    assert "the census of page frames failed: " in need.detail


def test_when_the_last_readings_fail_the_first_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[HostRoots] = []

    def fail_at_the_second(roots: HostRoots) -> list[MemoryReading]:
        calls.append(roots)
        if len(calls) > 1:
            raise OSError(5, "Input/output error")
        return take_readings(roots)

    monkeypatch.setattr("memdiag_node.capture.take_readings", fail_at_the_second)
    evidence = evidence_of(Check.BREAKDOWN)
    assert list(evidence.checks) == [Check.BREAKDOWN]
    assert evidence.breakdown is not None


def test_when_nothing_can_be_started_the_kernel_is_unsupported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_trace, "_SOURCE", not_c(tmp_path))
    with pytest.raises(UnsupportedError, match=r"page-allocation trace: .* does not compile"):
        evidence_of(Check.ALLOC_PAGE_TRACE)


def test_when_nothing_can_be_finished_the_run_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PageTrace, "finish", raising(FULL))
    with pytest.raises(MeasurementError, match="the map stacks cannot be written"):
        evidence_of(Check.ALLOC_PAGE_TRACE)
