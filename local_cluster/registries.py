"""The machine's access to the package registries, passed on to an image build.

A machine may use mirrors, a proxy or its own certificates for Debian's archive and PyPI, as configured for apt and pip.
The build gets this configuration through bind mounts; the only part that stays in an image is the address of the Debian
archive that it was built from.
"""

import configparser
import io
import os
from pathlib import Path

from local_cluster.shell import run

_APT_SETTINGS = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
_CERTIFICATES = Path("/etc/ssl/certs")


def mounts(folder: Path) -> list[str]:
    """Arguments for `buildah build`; the mounted files are written to `folder`."""
    apt = folder / "apt.conf"
    apt.write_text(apt_settings())
    pip = folder / "pip.conf"
    pip.write_text(_pip_configuration())
    arguments = [f"--volume={apt}:/etc/apt/apt.conf.d/99machine:ro", f"--volume={pip}:/etc/pip.conf:ro"]
    if _CERTIFICATES.is_dir():
        arguments.append(f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro")
    return arguments


def apt_settings() -> str:
    """The machine's apt settings that affect downloads, as an apt.conf(5)."""
    lines = run(["apt-config", "dump"]).splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(_APT_SETTINGS) and not line.endswith(' "";'))


def debian_sources(suite: str) -> list[str]:
    """sources.list(5) lines for `suite`, from the archives that the machine uses, if its package lists show any."""
    listing = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL)", "Created-By: Packages"])
    archives = {label: address for address, _, label in (line.partition(" ") for line in listing.splitlines())}
    suites = {"Debian": suite}
    if suite != "sid":  # gets newer packages instead of security updates
        suites["Debian-Security"] = f"{suite}-security"
    return [f"deb {archives[label]} {name} main" for label, name in suites.items() if label in archives]


def _pip_configuration() -> str:
    """pip's configuration files and environment as one file: later files override earlier ones, the environment all."""
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
