"""A second node of a running cluster, in QEMU: another kernel, cgroup v2, and a real network driver for its pods."""

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import containerd, guest_disk, guest_kernel, image_store, node
from local_cluster.api_client import ApiClient
from local_cluster.cache import Cache, content_key
from local_cluster.certificates import Pki
from local_cluster.daemons import Daemons
from local_cluster.guest_kernel import KERNEL_PACKAGES, GuestKernel, bootstrap, keep_boot_files
from local_cluster.paths import PACKAGE, cache_root
from local_cluster.sandbox import GUEST_ADDRESS, GUEST_GATEWAY, GUEST_INTERFACE, GUEST_POD_NETWORK, connect_guest
from local_cluster.shell import run
from local_cluster.steps import step
from local_cluster.virtual_machine import CONSOLE_TAIL_LINES, VirtualMachine

GUEST_NODE_NAME = "guest1"
READY_TIMEOUT_SECONDS = 180
MEMORY_MIB = 3072
RECEIVE_BUFFER_MAX_BYTES = 8 << 20

# The release with the same containerd as the machine: it can open the image store that the machine's has filled.
_SUITE = "bookworm"
_PACKAGES = (
    *KERNEL_PACKAGES,
    "containerd",
    "containernetworking-plugins",
    "iproute2",
    "iptables",  # kubelet needs it
    "kmod",
    "mount",
    "procps",
    "runc",
)
_INIT = "/node-init"
_INIT_SOURCE = PACKAGE / "guest" / "node-init"


@dataclass(frozen=True)
class GuestSystem:
    """What every guest node boots: the settings of the cluster are on an additional disk."""

    kernel: GuestKernel
    root: Path


def provide_system(kubelet: Path) -> GuestSystem:
    """The guest's kernel and root file system, from the cache or made from Debian's archive and `kubelet`."""
    with step("guest node's system") as current:
        cache = Cache(cache_root())
        parts: list[str | Path] = [
            guest_kernel.key(),
            *_PACKAGES,
            Path(node.__file__),
            Path(containerd.__file__),
            _INIT_SOURCE,
            kubelet,
        ]
        folder, cached = cache.entry(
            "guest-system", content_key(parts), lambda partial: _fill_system(partial, kubelet, cache)
        )
        current.outcome = "cached" if cached else "built"
        return GuestSystem(GuestKernel(folder), folder / "root.img")


def provide_images(archives: Sequence[Path]) -> Path:
    """A disk with containerd's root: the project's images and those in `archives`."""
    images = image_store.provide()
    with step("guest node's images") as current:
        cache = Cache(cache_root())
        folder, cached = cache.entry(
            "guest-images",
            content_key([images.name, *archives]),
            lambda partial: _fill_images(partial, images, archives, cache),
        )
        current.outcome = "cached" if cached else "built"
        return folder / "images.img"


def join(daemons: Daemons, pki: Pki, work: Path, system: GuestSystem, images: Path) -> float:
    """Boot the guest and wait until it is Ready; returns the seconds since power-on.

    Raises StepError with the guest's console, which is `guest.log` in the cluster's logs.
    """
    connect_guest(daemons.sandbox)
    pki.add_node(GUEST_NODE_NAME)
    machine = VirtualMachine(
        kernel=system.kernel,
        disks=[system.root, _pack_settings(pki, work), images],
        init=_INIT,
        memory_mib=MEMORY_MIB,
        kernel_arguments=["quiet"],
        devices=[
            "-netdev", f"tap,id=link,ifname={GUEST_INTERFACE},script=no,downscript=no",
            "-device", "virtio-net-pci,netdev=link,romfile=",
        ],
    )  # fmt: skip
    started = time.monotonic()
    daemons.start("guest", machine.command())
    daemons.wait(
        "guest node Ready",
        lambda: ApiClient(pki).node_is_ready(GUEST_NODE_NAME),
        log="guest",
        timeout_seconds=READY_TIMEOUT_SECONDS,
        log_lines=CONSOLE_TAIL_LINES,
    )
    return time.monotonic() - started


def _pack_settings(pki: Pki, work: Path) -> Path:
    """The tar archive that node-init unpacks."""
    folder = work / "guest"
    folder.mkdir(parents=True)
    for name, source in {
        "ca.crt": pki.certificate("ca"),
        "kubelet.crt": pki.certificate(GUEST_NODE_NAME),
        "kubelet.key": pki.key(GUEST_NODE_NAME),
        "kubelet.kubeconfig": pki.kubeconfig(GUEST_NODE_NAME),
    }.items():
        shutil.copyfile(source, folder / name)
    there = Path("/etc/kubernetes")
    settings = node.kubelet_settings(ca=there / "ca.crt", certificate=there / "kubelet.crt", key=there / "kubelet.key")
    # Emulated CPUs are slow: an operation on a container may take minutes.
    settings |= {"runtimeRequestTimeout": "10m"}
    (folder / "kubelet.json").write_text(json.dumps(settings, indent=1))
    (folder / "settings").write_text(
        f"NODE_NAME={GUEST_NODE_NAME}\n"
        f"NODE_ADDRESS={GUEST_ADDRESS}/24\n"
        f"GATEWAY={GUEST_GATEWAY}\n"
        f"NOW={time.time():.0f}\n"
        f"RECEIVE_BUFFER_MAX_BYTES={RECEIVE_BUFFER_MAX_BYTES}\n"
    )
    archive = work / "guest.tar"
    run(["tar", "--create", f"--file={archive}", f"--directory={folder}", "."])
    return archive


def _fill_system(folder: Path, kubelet: Path, cache: Cache) -> None:
    log = cache.log("guest-system")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        archive, root = Path(work) / "root.tar", Path(work) / "root"
        bootstrap(_SUITE, _PACKAGES, archive, Path(work), log)
        root.mkdir()
        run(["tar", "--extract", f"--file={archive}", f"--directory={root}"], log=log)
        archive.unlink()
        keep_boot_files(root / "boot", folder)
        for leftover in ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale"):
            shutil.rmtree(root / leftover, ignore_errors=True)
        shutil.copy2(kubelet, root / "usr/local/bin/kubelet")
        shutil.copyfile(_INIT_SOURCE, root / _INIT.lstrip("/"))
        (root / _INIT.lstrip("/")).chmod(0o755)
        cni = root / "etc/cni/net.d"
        shutil.rmtree(cni, ignore_errors=True)
        node.write_pod_network(cni, GUEST_POD_NETWORK)
        containerd.write_config(
            root / "etc/containerd/config.toml",
            root=node.CONTAINERD_ROOT,
            state=node.CONTAINERD_STATE,
            socket=node.CONTAINERD_SOCKET,
            cni=Path("/etc/cni/net.d"),
        )
        guest_disk.make_disk(root, folder / "root.img", log)


def _fill_images(folder: Path, images: Path, archives: Sequence[Path], cache: Cache) -> None:
    log = cache.log("guest-images")
    store = folder / "store"
    image_store.copy_with(images, archives, store, log)
    guest_disk.make_disk(store, folder / "images.img", log)
