"""The planted cases speak the language of the document."""

import ast
import subprocess
import sys
from pathlib import Path

from memdiag_api.findings import FindingKind
from memdiag_api.memory_classes import ClassName
from planted.cases import CASES

FOLDER = Path(__file__).parents[2] / "planted" / "cases"
PUBLIC_CASES = {
    "slab_heads",
    "slow_reader",
    "ftrace_buffer",
    "io_uring_rings",
    "tun_queue",
    "slab_leak",
    "hugepages_idle",
    "tmpfs_file",
    "bpf_maps",
    "page_tables",
    "zram_disk",
    "idle_keepalive",
    "write_queue",
    "many_workers",
    "full_pipes",
    "route_entries",
    "near_limit_cache",
    "near_limit_sockets",
    "page_pool",
    "oom_kill",
    "idle_namespaces",
}
WORDS = {kind.value for kind in FindingKind} | {name.value for name in ClassName}


def test_every_public_case_is_there_under_its_name() -> None:
    assert set(CASES) >= PUBLIC_CASES


def test_healthy_loads_are_a_part_of_the_cases() -> None:
    healthy = [case.name for case in CASES.values() if case.is_healthy]
    assert "idle_keepalive" in healthy
    assert 10 <= len(healthy) < len(CASES) / 2


def test_kinds_and_classes_are_spelled_as_in_the_document() -> None:
    """They are strings, because a container that plants a case has no memdiag."""
    spelled = {
        node.value
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if node.value[:1].isupper() and node.value.isalpha() and not node.value.isupper()
    }
    assert not spelled - WORDS
    assert len(spelled & WORDS) > 10


def test_an_oom_kill_is_planted_after_the_cases_that_it_would_hide() -> None:
    """For ten minutes it is a finding that comes before ordinary uses of memory."""
    after = list(CASES.values())[list(CASES).index("oom_kill") + 1 :]
    assert after
    assert all(case.is_healthy for case in after)


def test_the_cases_can_be_imported_where_only_they_and_python_are(tmp_path: Path) -> None:
    """As in a pod that gets them as an archive: what needs the tests' own helpers is imported when it is planted."""
    (tmp_path / "planted").symlink_to(FOLDER.parent)
    subprocess.run(
        [sys.executable, "-S", "-m", "planted.cases", "--help"],
        check=True,
        capture_output=True,
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_a_container_can_plant_the_cases_without_memdiag() -> None:
    imported = {
        name
        for path in FOLDER.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not [name for name in imported if name.startswith(("memdiag", "pydantic", "pytest"))]
