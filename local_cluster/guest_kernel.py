"""Debian's cloud kernels for QEMU guests: kernel, initial RAM disk and build configuration of one suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import registries
from local_cluster.cache import Cache, content_key
from local_cluster.paths import cache_root
from local_cluster.shell import run
from local_cluster.steps import step

KERNEL_PACKAGES = ("linux-image-cloud-amd64", "initramfs-tools")
# Debian 11 gets no updates any more. Its last metapackage is not in the archive, its last kernel is.
_LAST_IMAGES = {"bullseye": "linux-image-5.10.0-46-cloud-amd64"}
# An initial RAM disk with only the drivers of our guests: even a software-emulated CPU unpacks it quickly.
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
_INITRAMFS_SETTINGS = (
    'mkdir -p "$1/etc/initramfs-tools/conf.d"',
    'echo MODULES=list > "$1/etc/initramfs-tools/conf.d/guest"',
    f'printf "%s\\n" {" ".join(_DRIVERS)} > "$1/etc/initramfs-tools/modules"',
)


@dataclass(frozen=True)
class GuestKernel:
    """The newest cloud kernel of a Debian suite."""

    folder: Path

    @property
    def image(self) -> Path:
        """The kernel."""
        return self.folder / "vmlinuz"

    @property
    def initial_ram_disk(self) -> Path:
        """The initrd that mounts the root file system."""
        return self.folder / "initrd"

    @property
    def configuration(self) -> Path:
        """The options that it was built with (CONFIG_...)."""
        return self.folder / "config"


def provide(suite: str) -> GuestKernel:
    """The kernel of `suite`, from the cache or from Debian's archive.

    A cached kernel is kept until the cache is cleaned, even if the archive has a newer one.
    """
    with step(f"kernel of Debian {suite}") as current:
        cache = Cache(cache_root())
        kind = f"kernel-{suite}"
        folder, cached = cache.entry(kind, key(), lambda partial: _fill(partial, suite, cache.log(kind)))
        current.outcome = "cached" if cached else "built"
        return GuestKernel(folder)


def key() -> str:
    """Changes whenever a root file system that `bootstrap` makes from the same packages would."""
    return content_key([*KERNEL_PACKAGES, *_INITRAMFS_SETTINGS])


def bootstrap(suite: str, packages: Sequence[str], archive: Path, work: Path, log: Path) -> None:
    """Write a root file system with `packages`, a kernel among them, to the tar file `archive`.

    Temporary files are in the folder `work`.
    """
    apt = work / "bootstrap-apt.conf"
    apt.write_text(registries.apt_settings())
    options = [f"--include={','.join(packages)}", f"--aptopt={apt}"]
    options += [f"--essential-hook={line}" for line in _INITRAMFS_SETTINGS]
    # mmdebstrap would leave the machine's apt settings in the archive.
    options.append('--customize-hook=rm "$1/etc/apt/apt.conf.d/99mmdebstrap"')
    run(
        ["mmdebstrap", "--variant=apt", *options, suite, archive, *registries.debian_sources(suite)],
        log=log,
        remedy="check that Debian's archive can be reached, then run it again",
    )


def keep_boot_files(boot: Path, folder: Path) -> None:
    """Move the kernel's files out of a root file system's /boot, without the version in their names."""
    for kept, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*"), ("config", "config-*")):
        (found,) = boot.glob(pattern)
        found.rename(folder / kept)


def _fill(folder: Path, suite: str, log: Path) -> None:
    work = folder / "work"
    work.mkdir()
    archive = work / "root.tar"
    image, *others = KERNEL_PACKAGES
    bootstrap(suite, (_LAST_IMAGES.get(suite, image), *others), archive, work, log)
    run(["tar", "--extract", f"--file={archive}", f"--directory={work}", "./boot"], log=log)
    keep_boot_files(work / "boot", folder)
    run(["rm", "--recursive", work])
