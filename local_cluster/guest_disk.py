"""Root file systems of guests, as disk images."""

import shutil
from pathlib import Path

from local_cluster import image_build, image_store
from local_cluster.cache import Cache, content_key
from local_cluster.paths import PACKAGE, PROJECT, cache_root
from local_cluster.shell import run
from local_cluster.steps import step

RUNNER_INIT = "/guest-init"
_RUNNER_INIT_SOURCE = PACKAGE / "guest" / "runner-init"
_SPARE_MIB = 512
_RUNNER_SOURCES = ("Dockerfile", "requirements/node-runner.txt")


def provide_runner_disk() -> Path:
    """A disk with the file system of the node runner image, for a guest that runs programs in it without a cluster.

    Its init unpacks the second disk, a tar archive, to /source and runs `/source/start`. The copy of the project in the
    image may be older than the checkout, so the code under test is on the second disk.
    """
    with step("guest with the node runner's system") as current:
        cache = Cache(cache_root())
        parts: list[str | Path] = [image_build.base_key(), _RUNNER_INIT_SOURCE]
        parts += [PROJECT / name for name in _RUNNER_SOURCES]
        folder, cached = cache.entry("runner-disk", content_key(parts), lambda partial: _fill(partial, cache))
        current.outcome = "cached" if cached else "built"
        return folder / "disk.img"


def _fill(folder: Path, cache: Cache) -> None:
    log = cache.log("runner-disk")
    images, _ = image_store.find_or_build()
    root = folder / "root"
    image_store.copy_root(images, image_build.NODE_RUNNER_IMAGE, root, log)
    init = root / RUNNER_INIT.lstrip("/")
    shutil.copyfile(_RUNNER_INIT_SOURCE, init)
    init.chmod(0o755)
    make_disk(root, folder / "disk.img", log)


def make_disk(root: Path, disk: Path, log: Path) -> None:
    """Move the folder `root` into a new ext4 file system with some space to spare, in the sparse file `disk`."""
    size_mib = int(run(["du", "--summarize", "--block-size=1M", root]).split()[0])
    with disk.open("wb") as file:
        file.truncate((size_mib * 5 // 4 + _SPARE_MIB) << 20)
    # Without checksums: on an emulated CPU they cost more than they are worth for a test disk.
    run(["mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum", "-d", root, disk], log=log)
    shutil.rmtree(root)
