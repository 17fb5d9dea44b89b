"""The loader on this machine's own kernel: it needs no header tree, and every error says what failed and why."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.programs import ProgramInfoLayout
from support.bpf import loaded_programs, wait_until_gone

COUNTER = """
BPF_PERCPU_ARRAY(hits, u64, 1);
BPF_HASH(seen, u32, u64, 8192);
BPF_F_TABLE("array", u32, u64, shared, 4, BPF_F_MMAPABLE);
int on_event(struct bpf_raw_tracepoint_args *ctx) {
  u32 zero = 0;
  u64 *hit = hits.lookup(&zero);
  if (hit)
    *hit += STEP;
  return 0;
}
"""


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BCC_KERNEL_SOURCE", "/nowhere")
    return tmp_path


def test_a_program_counts_events_with_the_defines_it_was_given(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    with BpfObject(sources / "counter.bpf.c", {"STEP": 3}) as bpf:
        bpf.attach_raw_tracepoint("sys_enter", "on_event")
        for _ in range(1000):
            Path("/").stat()
        hits = int(bpf.read_per_cpu("hits", np.dtype("<u8")).sum())
    assert hits >= 3000
    assert hits % 3 == 0


def test_closing_frees_programs_and_maps_and_may_be_repeated(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    before = set(loaded_programs())
    bpf = BpfObject(sources / "counter.bpf.c", {"STEP": 1})
    bpf.attach_raw_tracepoint("sys_enter", "on_event")
    (program,) = [info.program_id for info in bpf.program_infos(ProgramInfoLayout.of(Btf.load()))]
    assert program not in before
    assert program in loaded_programs()
    bpf.close()
    bpf.close()
    assert wait_until_gone({program}) == set()


def test_a_hash_map_of_any_size_is_read_completely(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    entry = np.dtype([("key", "<u4"), ("value", "<u8")])
    with BpfObject(sources / "counter.bpf.c", {"STEP": 1}) as bpf:
        assert len(bpf.read_map("seen", entry)) == 0
        keys = np.arange(8000, dtype="<u4")
        bpf.update("seen", keys, keys.astype("<u8") * 7)
        found = np.sort(bpf.read_map("seen", entry), order="key")
        assert found["key"].tolist() == keys.tolist()
        assert (found["value"] == found["key"].astype("<u8") * 7).all()
        bpf.delete_keys("seen", keys[:7990])
        assert sorted(bpf.read_map("seen", entry)["key"].tolist()) == list(range(7990, 8000))


def test_a_mapped_array_is_shared_with_the_kernel(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    with BpfObject(sources / "counter.bpf.c", {"STEP": 1}) as bpf:
        bpf.table("shared")[bpf.table("shared").Key(2)] = bpf.table("shared").Leaf(99)
        assert np.frombuffer(bpf.mmap("shared", 32), "<u8", 4).tolist() == [0, 0, 99, 0]


def test_what_does_not_compile_is_an_error_with_the_compilers_message(
    sources: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (sources / "broken.bpf.c").write_text("int f(void *ctx) { return undefined_thing; }")
    with pytest.raises(BpfError, match=r"broken\.bpf\.c does not compile.*undefined_thing"):
        BpfObject(sources / "broken.bpf.c", {})
    assert capfd.readouterr().err == ""


def test_what_the_verifier_refuses_is_an_error_with_its_log(sources: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (sources / "refused.bpf.c").write_text(
        "int f(struct bpf_raw_tracepoint_args *ctx) { return *(u64 *)(ctx->args[0] + ctx->args[1]); }"
    )
    with (
        BpfObject(sources / "refused.bpf.c", {}) as bpf,
        pytest.raises(BpfError, match=r"(?s)the kernel refuses f: .*R\d"),
    ):
        bpf.attach_raw_tracepoint("sys_enter", "f")
    assert capfd.readouterr().err == ""


def test_an_unknown_tracepoint_can_be_distinguished_from_other_errors(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    with (
        BpfObject(sources / "counter.bpf.c", {"STEP": 1}) as bpf,
        pytest.raises(BpfError, match="no_such_tracepoint: No such file") as caught,
    ):
        bpf.attach_raw_tracepoint("no_such_tracepoint", "on_event")
    assert caught.value.errno == errno.ENOENT


def test_an_unknown_map_is_named(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    with BpfObject(sources / "counter.bpf.c", {"STEP": 1}) as bpf, pytest.raises(BpfError, match="no map nothing"):
        bpf.map_fd("nothing")


def test_a_map_that_is_read_with_another_layout_is_named(sources: Path) -> None:
    (sources / "counter.bpf.c").write_text(COUNTER)
    entry = np.dtype([("key", "<u4"), ("value", "<u8")])
    right = {"seen": entry, "shared": np.dtype("<u8"), "hits": np.dtype("<u8")}
    with BpfObject(sources / "counter.bpf.c", {"STEP": 1}, right) as bpf:
        assert bpf.view("shared", np.dtype("<u8"), 4).tolist() == [0, 0, 0, 0]
    with pytest.raises(
        BpfError, match=r"counter\.bpf\.c: the map seen has keys and values of 4 and 8 bytes.* 4 and 4$"
    ):
        BpfObject(
            sources / "counter.bpf.c", {"STEP": 1}, right | {"seen": np.dtype([("key", "<u4"), ("value", "<u4")])}
        )


IMPORT_AND_MEASURE = """
import re
from pathlib import Path
from memdiag_node.kernel.compiler import import_bcc
import_bcc()
resident, is_code, found = 0, False, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        is_code = re.search(r" r-xp .*/libLLVM[^/]*$", line) is not None
        found |= is_code
    elif is_code and line.startswith("Rss:"):
        resident += int(line.split()[1])
print(found, resident)
"""


def test_the_code_of_the_compiler_is_not_resident_until_it_is_needed() -> None:
    """The dynamic linker reads 35 MiB of it while it is imported: as much as a compilation needs at its peak."""
    done = subprocess.run([sys.executable, "-c", IMPORT_AND_MEASURE], capture_output=True, text=True, check=True)
    found, resident_kibibytes = done.stdout.split()
    assert found == "True"
    assert int(resident_kibibytes) < 4096
