"""kwok: a program that simulates the kubelets of a thousand nodes. Built once, kept in the cache."""

from pathlib import Path

from local_cluster.cache import Cache, content_key
from local_cluster.paths import cache_root
from local_cluster.shell import run

MODULE = "sigs.k8s.io/kwok/cmd/kwok@v0.7.0"


def provide() -> Path:
    """The program, from the cache or built (two minutes). Go's checksum database verifies the module."""
    cache = Cache(cache_root())
    folder, _ = cache.entry("kwok", content_key([MODULE, run(["go", "version"])]), _build)
    return folder / "kwok"


def _build(folder: Path) -> None:
    run(
        ["go", "install", "-trimpath", MODULE],
        log=Cache(cache_root()).log("kwok"),
        env={"GOBIN": str(folder), "CGO_ENABLED": "0"},
        remedy="check that Go modules can be downloaded (go env GOPROXY), then run it again",
    )
