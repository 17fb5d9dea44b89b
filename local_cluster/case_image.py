"""The image of `make case`: Debian's nginx, and the tools that an administrator tries first."""

import tempfile
from pathlib import Path

from local_cluster import image_build
from local_cluster.cache import PARTIAL, Cache, content_key
from local_cluster.paths import PROJECT, cache_root
from local_cluster.steps import step

IMAGE = "memdiag.dev/case:dev"
_CONTEXT = PROJECT / "examples/case/nginx"


def provide() -> Path:
    """The archive with the image (OCI image layout)."""
    with step("image with nginx") as current:
        cache = Cache(cache_root())
        key = content_key([image_build.base_key(), _CONTEXT / "Dockerfile"])
        folder, cached = cache.entry("case-image", key, lambda partial: _fill(partial, cache))
        current.outcome = "cached" if cached else "built"
        return folder / "image.tar"


def _fill(folder: Path, cache: Cache) -> None:
    with tempfile.TemporaryDirectory(suffix=PARTIAL, dir=folder.parent) as work:
        builder = image_build.ImageBuilder(cache, Path(work), cache.log("case-image"))
        builder.build_other(IMAGE, _CONTEXT).rename(folder / "image.tar")
