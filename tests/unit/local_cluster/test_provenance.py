"""Images record the sources that they were built from; a release without that information is not built."""

import re
import subprocess
from pathlib import Path

import pytest

from local_cluster import provenance
from local_cluster.paths import PROJECT
from local_cluster.provenance import Base, build_arguments
from local_cluster.release_images import Release, without_tag
from local_cluster.steps import StepError

DIGEST = "sha256:" + "0123456789abcdef" * 4


def release(base_image: str = f"example/base@{DIGEST}", source: str = "https://example.org/memdiag") -> Release:
    return Release("registry.example.com/memdiag", base_image, "no-such-builder", source, Path("dist"))


def test_every_argument_of_the_dockerfile_is_given() -> None:
    given = build_arguments(Base("base@" + DIGEST, "base:1", DIGEST), revision="abc", source="https://example.org")
    names = [one.removeprefix("--build-arg=").partition("=")[0] for one in given]
    before_the_first_stage = (PROJECT / "Dockerfile").read_text().partition("\nFROM ")[0]
    assert sorted(names) == sorted(re.findall(r"^ARG (\w+)", before_the_first_stage, re.MULTILINE))
    assert f"--build-arg=BASE_DIGEST={DIGEST}" in given
    assert f"--build-arg=BASE_IMAGE=base@{DIGEST}" in given


@pytest.mark.parametrize("digest", ["", "<none>", "sha256:12", "latest"])
def test_a_base_image_without_a_digest_is_refused(digest: str) -> None:
    with pytest.raises(StepError, match=r"the base image debian:trixie-slim has no digest"):
        Base("debian:trixie-slim", "debian:trixie-slim", digest)


def test_a_base_image_named_by_digest_needs_no_look_up() -> None:
    assert release().resolve_base() == Base(f"example/base@{DIGEST}", "example/base", DIGEST)


def test_a_missing_builder_is_reported() -> None:
    with pytest.raises(StepError, match=r"no-such-builder: not found"):
        Release("r", f"example/base@{DIGEST}", "no-such-builder", "https://example.org", Path("dist")).build_from("abc")


@pytest.mark.parametrize("revision", ["unknown", "0123-dirty"])
def test_a_release_is_built_from_a_commit_only(revision: str) -> None:
    with pytest.raises(StepError, match=f"the checkout's revision is {revision}"):
        release().build_from(revision)


def test_a_release_says_where_its_sources_are() -> None:
    with pytest.raises(StepError, match=r"no public origin"):
        release(source=provenance.UNPUBLISHED).build_from("0123")


@pytest.mark.parametrize(
    ("name", "repository"),
    [
        ("debian:trixie-slim", "debian"),
        ("registry.example.com:5000/debian:13", "registry.example.com:5000/debian"),
        ("registry.example.com:5000/debian", "registry.example.com:5000/debian"),
        ("debian", "debian"),
    ],
)
def test_the_digest_takes_the_tags_place(name: str, repository: str) -> None:
    assert without_tag(name) == repository


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True)


def test_the_revision_is_the_commit_and_says_whether_files_differ(tmp_path: Path) -> None:
    assert provenance.revision(tmp_path) == "unknown"
    git(tmp_path, "init", "--quiet")
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message=first")
    commit = provenance.revision(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", commit)
    (tmp_path / "file").write_text("b")
    assert provenance.revision(tmp_path) == f"{commit}-dirty"


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ("https://example.org/memdiag.git", "https://example.org/memdiag.git"),
        ("https://user:secret@example.org/memdiag.git", provenance.UNPUBLISHED),
        ("/home/somebody/memdiag", provenance.UNPUBLISHED),
        ("git@example.org:memdiag.git", provenance.UNPUBLISHED),
    ],
)
def test_the_source_is_a_public_address_or_none(tmp_path: Path, origin: str, source: str) -> None:
    assert provenance.source(tmp_path) == provenance.UNPUBLISHED
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "remote", "add", "origin", origin)
    assert provenance.source(tmp_path) == source
