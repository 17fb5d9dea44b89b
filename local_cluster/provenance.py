"""The origin of images, as the build arguments that become their labels (OCI image spec, annotations)."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from local_cluster.paths import PROJECT
from local_cluster.shell import run
from local_cluster.steps import StepError

UNPUBLISHED = "unpublished"
"""The source of images from a checkout without a public origin."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Base:
    """A base image: `image` is the reference to build on, `name` the name that was requested."""

    image: str
    name: str
    digest: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise StepError(
                f"the base image {self.name} has no digest: the builder returned {self.digest!r}",
                remedy="check that its registry can be reached, or specify a digest: BASE_IMAGE=NAME@sha256:...",
            )


def build_arguments(base: Base, *, revision: str, source: str) -> list[str]:
    """The Dockerfile's arguments, for `docker build` and `buildah build`."""
    values = {
        "BASE_IMAGE": base.image,
        "BASE_NAME": base.name,
        "BASE_DIGEST": base.digest,
        "VERSION": version(),
        "REVISION": revision,
        "SOURCE": source,
    }
    return [f"--build-arg={name}={value}" for name, value in values.items()]


def version() -> str:
    """The version of the project."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def revision(checkout: Path = PROJECT) -> str:
    """The checked-out commit, with "-dirty" appended if tracked files differ; "unknown" outside a git checkout."""
    git = ["git", "-C", str(checkout)]
    try:
        commit = run([*git, "rev-parse", "HEAD"]).strip()
        changed = run([*git, "status", "--porcelain", "--untracked-files=no"]).strip()
    except StepError:
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def source(checkout: Path = PROJECT) -> str:
    """The URL of the checkout's origin, if it is public (never with a user name in it)."""
    try:
        address = run(["git", "-C", str(checkout), "remote", "get-url", "origin"]).strip()
    except StepError:
        return UNPUBLISHED
    return address if re.fullmatch(r"https://[^@/]+/\S+", address) else UNPUBLISHED
