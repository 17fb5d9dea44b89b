"""Names of kernel addresses when /proc/kallsyms hides them, and a trace on a kernel without names."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.evidence import Context, NeedState
from memdiag_node.kernel import symbols
from memdiag_node.kernel.symbols import SymbolReader, Symbols
from memdiag_node.preflight import bpf as features
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.stacks import page_stacks
from memdiag_node.trace.settings import TraceSettings
from memdiag_node.trace.stacks import first_name
from planted.allocations import MIB, Allocator
from support.capabilities import only

KALLSYMS = Path("/proc/kallsyms")
KPTR_RESTRICT = Path("/proc/sys/kernel/kptr_restrict")
SETTINGS = TraceSettings(duration_seconds=2.0, cpu_budget_share=0)
LOOKED_UP = 500
NAME_OF = """
import sys
from memdiag_node.kernel.symbols import SymbolReader, Symbols
address = int(sys.argv[1]) + 1
with SymbolReader() as reader:
    print(Symbols(reader.lines).texts([address])[address])
"""


def functions() -> dict[int, set[str]]:
    """The names of the functions that start at each address, without modules, which may come and go."""
    found: dict[int, set[str]] = {}
    for line in KALLSYMS.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[1] in "tT":
            found.setdefault(int(words[0], 16), set()).add(words[2])
    return found


@pytest.fixture
def hidden_addresses() -> Iterator[dict[int, set[str]]]:
    """Set kernel.kptr_restrict=2; yields the functions as they were shown before."""
    before = KPTR_RESTRICT.read_text()
    KPTR_RESTRICT.write_text("0")
    try:
        shown = functions()
        KPTR_RESTRICT.write_text("2")
        assert set(functions()) == {0}
        yield shown
    finally:
        KPTR_RESTRICT.write_text(before)


def test_names_do_not_depend_on_kptr_restrict(hidden_addresses: dict[int, set[str]]) -> None:
    starts = sorted(hidden_addresses)
    starts = [start for start, following in itertools.pairwise(starts) if following > start + 1]
    starts = starts[:: len(starts) // LOOKED_UP]
    with SymbolReader() as reader:
        texts = Symbols(reader.lines).texts([start + 1 for start in starts])
    wrong = {texts[start + 1] for start in starts if texts[start + 1].split("+")[0] not in hidden_addresses[start]}
    assert not wrong
    assert {text.split("+")[1] for text in texts.values()} == {"0x1"}


def test_names_need_no_more_than_the_capabilities_of_every_program(hidden_addresses: dict[int, set[str]]) -> None:
    start = next(address for address, names in hidden_addresses.items() if "vfs_write" in names)
    done = subprocess.run(
        [*only(["BPF", "PERFMON"]), sys.executable, "-c", NAME_OF, str(start)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("+")[0] in hidden_addresses[start]


def test_a_trace_under_kptr_restrict_names_functions_and_processes(hidden_addresses: dict[int, set[str]]) -> None:
    assert hidden_addresses
    needs = {need.name: need.state for need in features.needs(HostRoots())}
    assert needs["kernel symbols"] is NeedState.MET
    with Allocator() as child, PageTrace(SETTINGS, roots=HostRoots()) as trace:
        planted_bytes = child.do("fill_pipes", 16 * MIB)
        result = trace.finish()
    stack = next(one for one in page_stacks(result, 64) if any(process.pid == child.pid for process in one.processes))
    assert stack.context is Context.PROCESS
    assert "pipe_write" in (first_name(stack.frames) or "")
    assert stack.outstanding_bytes == pytest.approx(planted_bytes, rel=0.02)


def test_a_kernel_that_refuses_to_show_names_gets_a_trace_without_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symbols, "_ADDRESSES", 1 << 20)  # a loop too long for the verifier
    with Allocator() as child, PageTrace(SETTINGS, roots=HostRoots()) as trace:
        planted_bytes = child.do("fill_pipes", 16 * MIB)
        result = trace.finish()
    stacks = page_stacks(result, len(result.stacks))
    assert max(stack.outstanding_bytes for stack in stacks) == pytest.approx(planted_bytes, rel=0.02)
    assert all(first_name(stack.frames) is None for stack in stacks)
    assert {stack.context for stack in stacks} == {Context.MIXED}
    assert not any(stack.processes for stack in stacks)


def test_preflight_reports_a_kernel_without_a_symbol_table(tmp_path: Path) -> None:
    (need,) = [one for one in features.needs(HostRoots(proc=tmp_path)) if one.name == "kernel symbols"]
    assert need.state is NeedState.DEGRADED
    assert "no function names" in need.detail
    assert "CONFIG_KALLSYMS" in need.remedy
