"""Kubernetes and etcd, built from their Go modules as pinned in kubernetes/go.mod and go.sum."""

import os
import re
import shutil
from pathlib import Path

from local_cluster.cache import Cache, content_key
from local_cluster.paths import PACKAGE, cache_root
from local_cluster.shell import run
from local_cluster.steps import StepError, step

MODULE = PACKAGE / "kubernetes"
BINARIES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
READY_BINARIES = "MEMDIAG_KUBE_BIN"


def provide() -> Path:
    """The folder with the BINARIES: MEMDIAG_KUBE_BIN if set, otherwise from the cache or built (takes minutes)."""
    with step("Kubernetes binaries") as current:
        ready = os.environ.get(READY_BINARIES)
        if ready:
            current.outcome = f"from {ready}"
            return _checked(Path(ready).resolve())
        cache = Cache(cache_root())
        folder, cached = cache.entry("kubernetes", _key(), lambda partial: _build(partial, cache.log("kubernetes")))
        current.outcome = "cached" if cached else "built"
        return folder


def _checked(folder: Path) -> Path:
    absent = [name for name in BINARIES if not os.access(folder / name, os.X_OK)]
    if absent:
        raise StepError(
            f"{folder} does not have {', '.join(absent)}", remedy=f"add them, or unset {READY_BINARIES} to build them"
        )
    return folder


def _key() -> str:
    return content_key(
        [
            MODULE / "go.mod",
            MODULE / "go.sum",
            MODULE / "tools.go",
            run([go_command(), "version"]),
            *_build_flags(),
            *_packages(),
        ]
    )


def _build(folder: Path, log: Path) -> None:
    run(
        [go_command(), "build", "-C", MODULE, *_build_flags(), "-o", f"{folder}/", *_packages()],
        log=log,
        env={"CGO_ENABLED": "0"},
        remedy="check that Go modules can be downloaded (go env GOPROXY), then run it again",
    )
    (folder / "server").rename(folder / "etcd")  # Go names a binary after the last part of its import path
    _checked(folder)


def _build_flags() -> list[str]:
    version = _kubernetes_version()
    minor = version.split(".")[1]
    package = "k8s.io/component-base/version"
    stamps = f"-X {package}.gitVersion={version} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}"
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", f"-ldflags=-s -w {stamps}"]


def _kubernetes_version() -> str:
    found = re.search(r"^\tk8s\.io/kubernetes (v\S+)$", (MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise StepError(f"{MODULE / 'go.mod'} does not require k8s.io/kubernetes")
    return found.group(1)


def _packages() -> list[str]:
    """The import paths of the commands, from tools.go."""
    return re.findall(r'^\t_ "(\S+)"$', (MODULE / "tools.go").read_text(), re.MULTILINE)


def go_command() -> str:
    """The Go tool."""
    # sudo's PATH does not have the folder of Go's own installation instructions.
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        raise StepError(
            "go: not found", remedy="install Go 1.26 or later and put it on PATH (https://go.dev/doc/install)"
        )
    return found
