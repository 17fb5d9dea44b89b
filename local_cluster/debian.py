"""The Debian packages that are needed to build and run the embedded cluster."""

from collections.abc import Iterable, Sequence

from local_cluster.cache import Cache
from local_cluster.paths import cache_root
from local_cluster.shell import run
from local_cluster.steps import Step, step

CLUSTER_PACKAGES = (
    "containerd",
    "containernetworking-plugins",  # CNI: ptp, host-local
    "iproute2",
    "nftables",  # kube-proxy
    "openssl",
    "runc",
    "util-linux",  # unshare, nsenter
)
IMAGE_PACKAGES = (
    "buildah",
    "gcc",  # the pause program
    "libc6-dev",
    "mmdebstrap",
)
GUEST_PACKAGES = (
    "e2fsprogs",  # mke2fs
    "mmdebstrap",
    "qemu-system-x86",
)


def missing(packages: Iterable[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    # dpkg-query fails if one of several names is unknown to it, so list all packages.
    listing = run(["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n"])
    installed = {line.split()[1] for line in listing.splitlines() if line.startswith("installed ")}
    return sorted(set(packages) - installed)


def install(packages: Sequence[str]) -> None:
    """Install the missing ones of `packages`; uses neither the network nor the package lists if none is missing."""
    with step("Debian packages") as current:
        wanted = missing(packages)
        if wanted:
            _apt_install(wanted)
        _report(current, wanted)


def _apt_install(packages: Sequence[str]) -> None:
    log = Cache(cache_root()).log("debian")
    log.unlink(missing_ok=True)
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    remedy = "check the machine's apt sources and network, then run it again"
    run(["apt-get", "update"], log=log, env=environment, remedy=remedy)
    run(["apt-get", "install", "--yes", "--no-install-recommends", *packages], log=log, env=environment, remedy=remedy)


def _report(current: Step, installed: Sequence[str]) -> None:
    current.outcome = f"installed {' '.join(installed)}" if installed else "present"
