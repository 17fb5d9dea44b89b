"""Build the project's images from its Dockerfile with buildah, on a base system created by mmdebstrap.

Neither a daemon nor an image registry is needed. buildah keeps its layers in the cache, so a step of the Dockerfile
runs again only if it, or what it copies, has changed.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from local_cluster import provenance, registries
from local_cluster.cache import Cache, content_key
from local_cluster.containerd import PAUSE_IMAGE
from local_cluster.paths import PACKAGE, PROJECT
from local_cluster.provenance import Base
from local_cluster.shell import run

OPERATOR_IMAGE = "memdiag.dev/operator:dev"
NODE_RUNNER_IMAGE = "memdiag.dev/node-runner:dev"
TARGETS = {"operator": OPERATOR_IMAGE, "node-runner": NODE_RUNNER_IMAGE}

_SUITE = "trixie"
# Debian's own slim image excludes these as well.
_LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*", "/usr/share/lintian/*")
# Included, so that no build step installs it over the machine's own certificates (see registries.py).
_INCLUDED = "ca-certificates"
_KEPT_LAYERS = 300
_PAUSE = PACKAGE / "pause"


def build_context() -> list[Path]:
    """The files that are copied into the images: those that .dockerignore admits, relative to the checkout."""
    admitted = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    found: list[Path] = []
    for name in admitted:
        top = PROJECT / name
        files = [top] if top.is_file() else sorted(path for path in top.rglob("*") if path.is_file())
        found += [path.relative_to(PROJECT) for path in files if "__pycache__" not in path.parts]
    return found


def key() -> str:
    """Changes whenever the images would."""
    parts: list[str | Path] = [base_key(), _PAUSE / "pause.c", _PAUSE / "Dockerfile"]
    for path in build_context():
        parts += [str(path), PROJECT / path]
    return content_key(parts)


@dataclass(frozen=True)
class ImageBuilder:
    """Builds all images and writes them to one archive (OCI image layout)."""

    cache: Cache
    work: Path
    log: Path

    def build(self, sboms: Path) -> Path:
        """The archive with the pause image and one image for every target of the Dockerfile.

        Their bills of materials are written to the new folder `sboms`, as TARGET.cdx.json.
        """
        self._build_pause()
        context, arguments = self._prepare()
        for target, name in TARGETS.items():
            self._build(name, context, f"--target={target}", *arguments)
        self._write_sboms(sboms, context, "--layers", *arguments)
        archive = self._archive([PAUSE_IMAGE, *TARGETS.values()])
        self._drop_old_layers()
        return archive

    def build_sboms(self, folder: Path) -> None:
        """Write the bills of materials as `build` does, after installing all packages again."""
        context, arguments = self._prepare()
        self._write_sboms(folder, context, "--no-cache", *arguments)

    def build_other(self, name: str, context: Path) -> Path:
        """The archive with another image, built from the Dockerfile in `context` on the same base system."""
        self._build(name, context, f"--build-arg=BASE_IMAGE={self._base_image()}", *self._machine())
        return self._archive([name])

    def _prepare(self) -> tuple[Path, list[str]]:
        """The build context, and the arguments that are the same for every target."""
        name = self._base_image()
        base = Base(name, name, self._buildah("images", "--format={{.Digest}}", name).strip())
        labels = provenance.build_arguments(base, revision=provenance.revision(), source=provenance.source())
        return self._copy_context(), [*labels, *self._machine()]

    def _machine(self) -> list[str]:
        """The options for a build on this machine, with its package archives."""
        return ["--isolation=chroot", "--network=host", *registries.mounts(self.work)]

    def _build_pause(self) -> None:
        context = self.work / "pause"
        shutil.copytree(_PAUSE, context)
        run(["gcc", "-Os", "-static", "-s", "-o", context / "pause", context / "pause.c"], log=self.log)
        self._build(PAUSE_IMAGE, context)

    def _base_image(self) -> str:
        """Debian's base system as an image; created once, by mmdebstrap."""
        name = f"localhost/memdiag-base:{base_key()}"
        if self._buildah("images", "--quiet", "--filter", f"reference={name}"):
            return name
        folder, _ = self.cache.entry("base", base_key(), self._bootstrap)
        context = self.work / "base"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n")
        os.link(folder / "base.tar", context / "base.tar")
        self._build(name, context)
        return name

    def _bootstrap(self, folder: Path) -> None:
        apt = self.work / "bootstrap-apt.conf"
        apt.write_text(registries.apt_settings())
        options = [f"--include={_INCLUDED}", f"--aptopt={apt}"]
        options += [f"--dpkgopt=path-exclude={pattern}" for pattern in _LEFT_OUT]
        # mmdebstrap would leave the machine's apt settings in the archive.
        options.append('--customize-hook=rm "$1/etc/apt/apt.conf.d/99mmdebstrap"')
        sources = registries.debian_sources(_SUITE)
        run(
            ["mmdebstrap", "--variant=minbase", *options, _SUITE, folder / "base.tar", *sources],
            log=self.log,
            remedy="check that Debian's archive can be reached, then run it again",
        )

    def _copy_context(self) -> Path:
        """The build context with the same times and modes in every checkout: buildah's layer cache compares both."""
        context = self.work / "context"
        for path in build_context():
            copy = context / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(PROJECT / path, copy)
        for path in (context, *context.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (0, 0))
        return context

    def _build(self, name: str, context: Path, *arguments: str) -> None:
        self._buildah("build", "--layers", "--pull=never", f"--tag={name}", *arguments, str(context))

    def _write_sboms(self, folder: Path, context: Path, *arguments: str) -> None:
        output = f"--output=type=local,dest={folder}"
        self._buildah("build", "--pull=never", "--target=sbom", output, *arguments, str(context))

    def _archive(self, names: list[str]) -> Path:
        # One layout for all, so that shared layers are compressed and imported once.
        layout = self.work / "layout"
        for name in names:
            # Fast compression: the archive is unpacked right away.
            self._buildah("push", "--compression-format=gzip", "--compression-level=1", name, f"oci:{layout}:{name}")
        archive = self.work / "images.tar"
        run(["tar", "--create", f"--directory={layout}", f"--file={archive}", "."], log=self.log)
        return archive

    def _drop_old_layers(self) -> None:
        """Occasionally remove what no image uses any more, including layers that only save time."""
        listing = self._buildah("images", "--all", "--quiet")
        if len(set(listing.split())) > _KEPT_LAYERS:
            self._buildah("rmi", "--prune", "--force")

    def _buildah(self, *arguments: str) -> str:
        store = self.cache.root / "buildah"
        store.mkdir(exist_ok=True)
        # A separate mount namespace: a killed build leaves no mount behind, and /var/lib/containers is in the cache.
        inside: list[str | Path] = ["unshare", "--mount", "--propagation=slave"]
        inside += ["sh", "-c", 'mount --bind "$0" /var/lib && exec "$@"', store]
        options = [f"--runroot={self.work / 'buildah'}", "--storage-driver=overlay"]
        remedy = "see the complete log; if the cache is damaged: python3 -m local_cluster clean-cache"
        log = None if arguments[0] == "images" else self.log
        return run([*inside, "buildah", *options, *arguments], log=log, remedy=remedy)


def base_key() -> str:
    """Changes whenever the images' base system would."""
    return content_key([_SUITE, _INCLUDED, *_LEFT_OUT])
