"""The settings of the package registries that an image build receives from the machine."""

import configparser
from pathlib import Path

import pytest

from local_cluster import registries


def test_pip_reads_the_users_settings_and_the_environment_overrides_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / ".config/pip/pip.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text("[global]\nindex-url = https://mirror.example/simple\ntimeout = 5\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "60")
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple?token=%20")
    work = tmp_path / "work"
    work.mkdir()

    mounts = registries.mounts(work)

    assert f"--volume={work}/pip.conf:/etc/pip.conf:ro" in mounts
    seen = configparser.RawConfigParser()
    seen.read(work / "pip.conf")
    assert seen.get("global", "index-url") == "https://other.example/simple?token=%20"
    assert seen.get("global", "timeout") == "5"
    assert seen.get("global", "default-timeout") == "60"


def test_apt_gets_only_settings_for_downloads() -> None:
    lines = registries.apt_settings().splitlines()
    assert all(line.startswith("Acquire::") and line.endswith(";") for line in lines)


@pytest.mark.parametrize(("suite", "expected"), [("trixie", {"trixie", "trixie-security"}), ("sid", {"sid"})])
def test_only_releases_have_security_updates(suite: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    listing = "https://debian.example/ Debian\nhttps://security.example/ Debian-Security\n"
    monkeypatch.setattr(registries, "run", lambda _: listing)
    assert {line.split()[2] for line in registries.debian_sources(suite)} == expected
