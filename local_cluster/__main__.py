"""The command line: `python3 -m local_cluster COMMAND`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from local_cluster import debian, image_store, kubernetes_binaries, promtool, provenance, steps
from local_cluster.cache import Cache
from local_cluster.case import run_case
from local_cluster.case_outcome import Cause
from local_cluster.cluster import Cluster, all_clusters
from local_cluster.demo import run_demo
from local_cluster.paths import cache_root
from local_cluster.release_images import BUILDERS, DEFAULT_BASE_IMAGE, Release
from local_cluster.steps import StepError, step

DEFAULT_NAME = "memdiag"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Both have the same effect: everything that was started is taken down. Background jobs of a shell ignore SIGINT
    # unless a handler is set.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except StepError as error:
        return steps.fail(error)
    except KeyboardInterrupt:
        print("interrupted; taking down everything that was started", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m local_cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=run)
        return command

    prepare = add("prepare", _prepare, "install the Debian packages that are missing")
    prepare.add_argument("packages", nargs="*", metavar="PACKAGE", help="additional packages to install")
    build = add("build", _build, "build the Kubernetes binaries and the images, unless they are cached")
    build.add_argument("--promtool", action="store_true", help="also build promtool, which tests the alert rules")
    release = add("release-images", _release_images, "build the images of a release for a registry")
    release.add_argument("--repository", required=True, help="repository to push them to, without the last part")
    release.add_argument("--base-image", default=DEFAULT_BASE_IMAGE, help="(default: %(default)s)")
    release.add_argument("--builder", choices=BUILDERS, default="docker", help="(default: %(default)s)")
    release.add_argument("--source", help="URL of the published sources (default: git's remote origin)")
    release.add_argument("--sboms", type=Path, default=Path("dist"), help="directory for the bills of materials")
    release.add_argument("words", nargs=argparse.REMAINDER, metavar="OPTION", help="more options for the builder")
    up = add("up", _up, "start a cluster, and build what it needs")
    up.add_argument("--api-only", action="store_true", help="etcd and kube-apiserver only")
    up.add_argument("--owner-pid", type=int, help="the cluster may be removed once this process has ended")
    down = add("down", _down, "stop a cluster and remove every trace of it")
    demo = add("demo", _demo, "diagnose a deliberately stuck socket in a temporary cluster")
    demo.add_argument("--keep", action="store_true", help="leave the cluster up")
    case = add("case", _case, "reproduce the case that memdiag is made for, on a QEMU node with a real network driver")
    case.add_argument("--keep", action="store_true", help="leave the cluster up")
    case.add_argument(
        "--cause",
        type=Cause,
        choices=list(Cause),
        default=Cause.STOPPED,
        help="why nginx stops reading: stopped by a signal, or blocked in a handler (default: %(default)s)",
    )
    case.add_argument("--owner-pid", type=int, help="the cluster may be removed once this process has ended")
    case.add_argument("--outcome", type=Path, metavar="FILE", help="write the measurements to this file, as JSON")
    kubectl = add("kubectl", _kubectl, "run the cluster's kubectl as admin")
    enter = add("enter", _enter, "run a command inside the node's namespaces")
    for command in (up, down, demo, case, kubectl, enter):
        command.add_argument("--name", default=DEFAULT_NAME, help="the cluster's name (default: %(default)s)")
    kubectl.add_argument("words", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    enter.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND")
    add("status", _status, "list the clusters")
    add("clean-cache", _clean_cache, "delete all cached builds")
    return parser


def _prepare(options: argparse.Namespace) -> int:
    debian.install([*debian.CLUSTER_PACKAGES, *debian.IMAGE_PACKAGES, *options.packages])
    return 0


def _build(options: argparse.Namespace) -> int:
    kubernetes_binaries.provide()
    images = image_store.provide()
    print(f"bills of materials of the images: {images / image_store.SBOMS}")
    if options.promtool:
        promtool.provide()
    return 0


def _release_images(options: argparse.Namespace) -> int:
    release = Release(
        repository=options.repository,
        base_image=options.base_image,
        builder=options.builder,
        source=options.source or provenance.source(),
        sboms=options.sboms,
        options=_after_dashes(options.words),
    )
    release.build()
    print("Push them, and put their digests into manifests/overlays/release:")
    for image in release.images().values():
        print(f"  {options.builder} push {image}")
    return 0


def _up(options: argparse.Namespace) -> int:
    cluster = Cluster(options.name)
    cluster.up(api_only=options.api_only, owner_pid=options.owner_pid)
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    return 0


def _down(options: argparse.Namespace) -> int:
    with step(f"cluster {options.name} down") as current:
        if not Cluster(options.name).down():
            current.outcome = "was not up"
    return 0


def _demo(options: argparse.Namespace) -> int:
    debian.install([*debian.CLUSTER_PACKAGES, *debian.IMAGE_PACKAGES])
    run_demo(Cluster(options.name), keep=options.keep)
    return 0


def _case(options: argparse.Namespace) -> int:
    debian.install([*debian.CLUSTER_PACKAGES, *debian.IMAGE_PACKAGES, *debian.GUEST_PACKAGES])
    outcome = run_case(Cluster(options.name), options.cause, keep=options.keep, owner_pid=options.owner_pid)
    if options.outcome:
        outcome.save(options.outcome)
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    cluster = Cluster(options.name)
    cluster.sandbox()  # raises an error if it is not running
    os.execve(
        cluster.kubectl,
        ["kubectl", *_after_dashes(options.words)],
        {**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
    )


def _enter(options: argparse.Namespace) -> int:
    words = [*Cluster(options.name).sandbox().enter(), *(_after_dashes(options.words) or ["sh"])]
    os.execvp(words[0], words)


def _after_dashes(words: list[str]) -> list[str]:
    """argparse keeps the `--` before another program's arguments (only some versions drop it)."""
    return words[1:] if words[:1] == ["--"] else words


def _status(_: argparse.Namespace) -> int:
    for cluster in all_clusters():
        record = cluster.record()
        kind = "API server only" if record and record.api_only else "one node"
        state = "running" if cluster.is_running() else "broken (take it down)"
        print(f"{cluster.name}: {kind}, {state}, KUBECONFIG={cluster.kubeconfig}")
    return 0


def _clean_cache(_: argparse.Namespace) -> int:
    with step("cache cleaned"):
        Cache(cache_root()).clean()
    return 0


if __name__ == "__main__":
    sys.exit(main())
