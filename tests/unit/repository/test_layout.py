"""Rules about the source tree that no tool enforces."""

import importlib
import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_source_roots_are_not_packages() -> None:
    """`operator/__init__.py` would shadow the standard library's `operator`, from which `collections` imports."""
    assert not (ROOT / "operator/__init__.py").exists()
    assert not (ROOT / "node_runner/__init__.py").exists()
    assert importlib.import_module("operator").__file__ == os.__file__.replace("os.py", "operator.py")


def test_only_the_compiler_imports_bcc() -> None:
    importers = [
        str(path.relative_to(ROOT))
        for path in ROOT.glob("node_runner/**/*.py")
        if re.search(r"^\s*(import bcc|from bcc)\b", path.read_text(), re.MULTILINE)
    ]
    assert importers == ["node_runner/memdiag_node/kernel/compiler.py"]


def test_no_c_function_is_longer_than_60_lines() -> None:
    found = 0
    for path in ROOT.glob("node_runner/**/*.bpf.[ch]"):
        for body in re.finditer(r"^[^\n]*\)\n\{\n(.*?)^\}$", path.read_text(), re.MULTILINE | re.DOTALL):
            found += 1
            assert body[1].count("\n") <= 60, body[0].splitlines()[0]
    assert found > 50


def test_every_requirement_has_a_hash_and_no_index() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text()
        pinned = re.findall(r"^[a-z0-9.\-]+(?:\[[a-z,]+\])?==", text, re.MULTILINE)
        assert len(pinned) > (0 if path.name == "bench.txt" else 3), path
        assert "index-url" not in text
        assert "://" not in text
        assert text.count("--hash=sha256:") >= len(pinned)


def test_every_link_between_pages_has_a_target() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
