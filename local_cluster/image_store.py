"""The images as the node's containerd needs them: imported and unpacked once, then copied to every new cluster."""

import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from local_cluster import containerd, image_build
from local_cluster.cache import PARTIAL, Cache
from local_cluster.linked_copy import copy_tree
from local_cluster.paths import cache_root
from local_cluster.shell import run
from local_cluster.steps import StepError, step

SBOMS = "sbom"
"""Folder next to the images with their bills of materials, as TARGET.cdx.json."""

# No automatic garbage collection: an import would lose the layers that it is about to reuse.
_STORE_CONFIG = """\
version = 2
root = "{root}"
state = "{state}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 0
  startup_delay = "24h"
"""


def provide() -> Path:
    """The root folder of a containerd with the pause image and the project's images."""
    with step("images") as current:
        folder, cached = find_or_build()
        current.outcome = "cached" if cached else "built"
        return folder


def find_or_build() -> tuple[Path, bool]:
    """As `provide`, without printing a step; also returns whether it was in the cache."""
    cache = Cache(cache_root())
    log = cache.log("images")
    return cache.entry("images", image_build.key(), lambda partial: _fill(partial, cache, log))


def copy_with(store: Path, archives: Sequence[Path], target: Path, log: Path) -> None:
    """Copy a store (see `provide`) to the new folder `target`, and import more image archives into it."""
    copy_tree(store, target)
    with tempfile.TemporaryDirectory(prefix="memdiag-") as state, _containerd(target, Path(state), log) as socket:
        for archive in archives:
            run(["ctr", f"--address={socket}", "--namespace=k8s.io", "images", "import", archive], log=log)


def copy_root(store: Path, image: str, target: Path, log: Path) -> None:
    """Copy the file system of an image in `store` (see `provide`) to the new folder `target`."""
    with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=target.parent) as work:
        own = Path(work) / "store"
        copy_tree(store, own)  # a mount changes containerd's database
        mounted = Path(work) / "mounted"
        mounted.mkdir()
        with tempfile.TemporaryDirectory(prefix="memdiag-") as state, _containerd(own, Path(state), log) as socket:
            script = (
                'ctr --address="$0" --namespace=k8s.io images mount "$1" "$2" && cp --archive "$2" "$3" && umount "$2"'
            )
            inside = ["unshare", "--mount", "--propagation=slave", "sh", "-c", script]
            run([*inside, socket, image, mounted, target], log=log)


def image_labels(store: Path, image: str, log: Path) -> dict[str, str]:
    """The labels of an image in `store` (see `provide`)."""
    with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=store.parent) as work:
        own = Path(work) / "store"
        copy_tree(store, own)  # even reading changes containerd's database
        with tempfile.TemporaryDirectory(prefix="memdiag-") as state, _containerd(own, Path(state), log) as socket:
            ctr = ["ctr", f"--address={socket}", "--namespace=k8s.io"]
            listing = run([*ctr, "images", "list", f"name=={image}"])
            digest = re.search(r"sha256:[0-9a-f]{64}", listing)
            if digest is None:
                raise StepError(f"{image} is not among the images in {store}", log=log)
            manifest = json.loads(run([*ctr, "content", "get", digest[0]]))
            config = json.loads(run([*ctr, "content", "get", manifest["config"]["digest"]]))
    labels: dict[str, str] = config["config"]["Labels"]
    return labels


def _fill(folder: Path, cache: Cache, log: Path) -> None:
    with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=folder.parent) as work:
        builder, sboms = image_build.ImageBuilder(cache, Path(work), log), Path(work) / "sbom"
        archive = builder.build(sboms)
        _start_from_newest(folder)
        # Not in the cache folder: the path of a socket is limited to 107 bytes.
        with tempfile.TemporaryDirectory(prefix="memdiag-") as state, _containerd(folder, Path(state), log) as socket:
            ctr = ["ctr", f"--address={socket}", "--namespace=k8s.io"]
            run([*ctr, "images", "import", archive], log=log)
            # Deleting a lease synchronously makes containerd collect everything that no image uses any more.
            run([*ctr, "leases", "create", "--id=collect-garbage"], log=log)
            run([*ctr, "leases", "delete", "--sync", "collect-garbage"], log=log)
        shutil.rmtree(folder / SBOMS, ignore_errors=True)  # of the store that this one was copied from
        shutil.copytree(sboms, folder / SBOMS)


def _start_from_newest(folder: Path) -> None:
    """Start from the newest store: the layers in it need not be unpacked again."""
    others = [other for other in folder.parent.iterdir() if not other.name.endswith(PARTIAL)]
    if others:
        folder.rmdir()
        copy_tree(max(others, key=lambda other: other.stat().st_mtime), folder)


@contextmanager
def _containerd(root: Path, state: Path, log: Path) -> Iterator[Path]:
    """Run a containerd that only stores images; yields its socket."""
    socket = state / "containerd.sock"
    config = state / "containerd.toml"
    config.write_text(_STORE_CONFIG.format(root=root, state=state, socket=socket))
    # It exits with this process, even if that is killed.
    command = ["setpriv", "--pdeathsig=KILL", "unshare", "--mount", "--propagation=slave", "containerd"]
    command.append(f"--config={config}")
    with log.open("a") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 30
            while not containerd.answers(socket):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StepError("containerd did not start", log=log)
                time.sleep(0.05)
            yield socket
        finally:
            process.terminate()
