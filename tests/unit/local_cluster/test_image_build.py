"""The inputs of the images, and that nothing else changes them."""

from pathlib import Path

import pytest

from local_cluster import image_build


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".dockerignore").write_text("# what goes in\n*\n!Dockerfile\n!operator\n**/__pycache__\n")
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "operator/package/__pycache__").mkdir(parents=True)
    (tmp_path / "operator/package/module.py").write_text("x = 1\n")
    (tmp_path / "operator/package/__pycache__/module.pyc").write_text("")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text("")
    monkeypatch.setattr(image_build, "PROJECT", tmp_path)
    return tmp_path


@pytest.mark.usefixtures("checkout")
def test_the_context_is_what_dockerignore_lets_through() -> None:
    assert image_build.build_context() == [Path("Dockerfile"), Path("operator/package/module.py")]


def test_the_key_changes_with_the_content_or_the_name_of_a_source_file_only(checkout: Path) -> None:
    before = image_build.key()
    (checkout / "docs/page.md").write_text("changed")
    (checkout / "operator/package/module.py").touch()
    assert image_build.key() == before
    (checkout / "operator/package/module.py").write_text("x = 2\n")
    changed = image_build.key()
    assert changed != before
    (checkout / "operator/package/module.py").rename(checkout / "operator/package/other.py")
    assert image_build.key() not in {before, changed}


def test_every_file_that_the_dockerfile_copies_is_let_through() -> None:
    project = Path(__file__).parents[3]
    admitted = {line[1:] for line in (project / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = [line.split()[1:-1] for line in (project / "Dockerfile").read_text().splitlines() if line[:5] == "COPY "]
    copied = {word.rstrip("/") for words in copies if not words[0].startswith("--from") for word in words}
    assert [word for word in copied if not {word, word.split("/")[0]} & admitted] == []
