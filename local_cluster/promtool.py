"""promtool, built from its Go module as pinned in prometheus/go.mod and go.sum: checks metrics and alert rules."""

from pathlib import Path

from local_cluster.cache import Cache, content_key
from local_cluster.kubernetes_binaries import go_command
from local_cluster.paths import PACKAGE, cache_root
from local_cluster.shell import run
from local_cluster.steps import step

MODULE = PACKAGE / "prometheus"
COMMAND = "github.com/prometheus/prometheus/cmd/promtool"
# Without service discovery: its cloud clients are most of the binary.
BUILD_FLAGS = ("-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-tags=remove_all_sd")


def provide() -> Path:
    """The binary: from the cache, otherwise built (a minute or two)."""
    with step("promtool") as current:
        cache = Cache(cache_root())
        key = content_key([MODULE / "go.mod", MODULE / "go.sum", run([go_command(), "version"]), *BUILD_FLAGS, COMMAND])
        folder, cached = cache.entry("promtool", key, lambda partial: _build(partial, cache.log("promtool")))
        current.outcome = "cached" if cached else "built"
        return folder / "promtool"


def _build(folder: Path, log: Path) -> None:
    run(
        [go_command(), "build", "-C", MODULE, *BUILD_FLAGS, "-o", f"{folder}/", COMMAND],
        log=log,
        env={"CGO_ENABLED": "0"},
        remedy="check that Go modules can be downloaded (go env GOPROXY), then run it again",
    )
