"""How this machine reaches the package registries, handed on to an image build.

A machine may reach Debian's archive and PyPI by a mirror, through a proxy or with certificates of its own; its
configuration of apt and pip says so. The build gets it by bind mounts; all that stays in an image is which Debian
archive it came from.
"""

import configparser
import io
import os
from pathlib import Path

from local_cluster.shell import run

_APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
_CERTIFICATES = Path("/etc/ssl/certs")


def mounts(folder: Path) -> list[str]:
    """Arguments for `buildah build`; what they mount is written to `folder`."""
    apt = folder / "apt.conf"
    apt.write_text(apt_settings())
    pip = folder / "pip.conf"
    pip.write_text(_pip_configuration())
    arguments = [f"--volume={apt}:/etc/apt/apt.conf.d/99machine:ro", f"--volume={pip}:/etc/pip.conf:ro"]
    if _CERTIFICATES.is_dir():
        arguments.append(f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro")
    return arguments


def apt_settings() -> str:
    """The machine's apt settings that bear on downloads, as an apt.conf(5)."""
    lines = run(["apt-config", "dump"]).splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(_APT_SETTINGS) and not line.endswith(' "";'))


def debian_sources(suite: str) -> list[str]:
    """sources.list(5) lines for `suite`, from the archives that the machine uses; none if its lists do not tell."""
    listing = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"])
    archives = {label: address for address, _, label in (line.partition(" ") for line in listing.splitlines())}
    suites = {"Debian": suite}
    if suite != "sid":  # fixed by newer packages, not by security updates
        suites["Debian-Security"] = f"{suite}-security"
    return [f"deb {archives[label]} {name} main" for label, name in suites.items() if label in archives]


def _pip_configuration() -> str:
    """pip's configuration files and environment as one file: later ones win, the environment most (pip's own rule)."""
    merged = configparser.RawConfigParser()
    home = Path.home()
    merged.read(["/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf"])
    if not merged.has_section("global"):
        merged.add_section("global")
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            merged.set("global", name.removeprefix("PIP_").lower().replace("_", "-"), value)
    text = io.StringIO()
    merged.write(text)
    return text.getvalue()
