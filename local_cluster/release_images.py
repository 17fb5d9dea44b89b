"""The images of a release, for a registry: built on a base image with a known digest, with their bills of materials.

Nothing is pushed: a push returns the digests that the release overlay needs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import image_build, provenance
from local_cluster.paths import PROJECT
from local_cluster.provenance import Base
from local_cluster.shell import run
from local_cluster.steps import StepError, step

BUILDERS = ("docker", "buildah")
DEFAULT_BASE_IMAGE = "debian:trixie-slim"


@dataclass(frozen=True)
class Release:
    """What to build, with which program, and the folder of the bills of materials."""

    repository: str
    base_image: str
    builder: str
    source: str
    sboms: Path
    options: Sequence[str] = ()
    """More options for `docker build` or `buildah build`."""

    def build(self) -> None:
        """Build everything from the checked-out commit; see `build_from`."""
        self.build_from(provenance.revision())

    def build_from(self, revision: str) -> None:
        """Raises StepError, before any build, if the revision, the source URL or the base digest is unknown."""
        if revision == "unknown" or revision.endswith("-dirty"):
            raise StepError(
                f"a release must be built from a commit, but the checkout's revision is {revision}",
                remedy="commit or stash the changes",
            )
        if self.source == provenance.UNPUBLISHED:
            raise StepError(
                "a release must state where its sources are, but this checkout has no public origin",
                remedy="set it: SOURCE=https://...",
            )
        base = self.resolve_base()
        arguments = [*provenance.build_arguments(base, revision=revision, source=self.source), *self.options]
        for target, image in self.images().items():
            with step(f"{image} on {base.name}@{base.digest}"):
                run([self.builder, "build", f"--target={target}", f"--tag={image}", *arguments, PROJECT])
        with step(f"bills of materials in {self.sboms}"):
            output = f"--output=type=local,dest={self.sboms}"
            run([self.builder, "build", "--target=sbom", output, *arguments, PROJECT])

    def images(self) -> dict[str, str]:
        """The images' names, by target of the Dockerfile."""
        return {target: f"{self.repository}/{target}:{provenance.version()}" for target in image_build.TARGETS}

    def resolve_base(self) -> Base:
        """The base image with its current digest. Raises StepError if the builder cannot find it."""
        name, _, digest = self.base_image.partition("@")
        if digest:
            return Base(self.base_image, name, digest)
        remedy = "check that its registry can be reached, or specify a digest: BASE_IMAGE=NAME@sha256:..."
        if self.builder == "docker":
            inspect = ["docker", "buildx", "imagetools", "inspect", "--format={{json .Manifest}}", name]
            digest = json.loads(run(inspect, remedy=remedy))["digest"]
            return Base(f"{without_tag(name)}@{digest}", name, digest)
        run(["buildah", "pull", "--quiet", "--policy=missing", name], remedy=remedy)
        digest = run(["buildah", "images", "--format={{.Digest}}", name], remedy=remedy).strip()
        return Base(name, name, digest)


def without_tag(name: str) -> str:
    """The repository of an image's name; a colon before the last slash belongs to the registry's port."""
    repository, colon, tag = name.rpartition(":")
    return repository if colon and "/" not in tag else name
