"""Debian's cloud kernels with their modules, headers and compiler: for guests that load modules, their own among them.

An entry has the kernel and everything that belongs to it in one version. It is apart from guest_kernel's entries, which
are small and serve all other guests.
"""

import lzma
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from local_cluster import guest_kernel
from local_cluster.cache import Cache, content_key
from local_cluster.guest_kernel import KERNEL_PACKAGES, GuestKernel, bootstrap, keep_boot_files
from local_cluster.paths import cache_root
from local_cluster.shell import run
from local_cluster.steps import step

# The headers depend on the compiler that the kernel was built with, and on its build programs.
_PACKAGES = (*KERNEL_PACKAGES, "linux-headers-cloud-amd64", "make")
_LEFTOVERS = ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/locale", "usr/share/man", "dev")


@dataclass(frozen=True)
class KernelBuild:
    """A kernel, and a root file system with its modules, its headers and its compiler."""

    folder: Path

    @property
    def kernel(self) -> GuestKernel:
        """The kernel to boot."""
        return GuestKernel(self.folder)

    @property
    def release(self) -> str:
        """The kernel's release, as in uname(2)."""
        (found,) = (self.folder / "root/usr/lib/modules").iterdir()
        return found.name

    def module_files(self, names: Iterable[str]) -> list[Path]:
        """The files of modules and of what they depend on, in the order in which they can be loaded.

        `names` are those of the modules' files without `.ko`. What this kernel has built in has no file, and is left
        out, like what it does not have at all: modules come and go between versions.
        """
        modules = self.folder / "root/usr/lib/modules" / self.release
        needed: dict[str, list[str]] = {}
        for line in (modules / "modules.dep").read_text().splitlines():
            file, _, others = line.partition(":")
            needed[Path(file).name.partition(".")[0]] = [*reversed(others.split()), file]
        return [modules / file for file in dict.fromkeys(file for name in names for file in needed.get(name, ()))]

    def compile_module(self, source: Path, work: Path) -> Path:
        """Build a module from one C file; returns its `.ko` in the folder `work`.

        It is built inside the root file system, by the kernel's own compiler against its headers; nothing stays there.
        Raises StepError with the compiler's output.
        """
        (work / "Makefile").write_text(f"obj-m := {source.stem}.o\n")
        shutil.copyfile(source, work / source.name)
        headers = f"/usr/lib/modules/{self.release}/build"
        # BTF of the module would need the kernel's, and pahole.
        make = f"make -C {headers} M=/mnt CONFIG_DEBUG_INFO_BTF_MODULES= modules"
        binds = (f'mount --bind {folder} "$1{folder}"' for folder in ("/dev", "/proc"))
        prepare = " && ".join((*binds, 'mount --bind "$2" "$1/mnt"', 'mount -t tmpfs tmpfs "$1/tmp"'))
        script = f'{prepare} && exec chroot "$1" env --ignore-environment PATH=/usr/bin:/bin {make}'
        root = self.folder / "root"
        run(["unshare", "--mount", "sh", "-c", script, "sh", root, work], log=work / "compile.log")
        return work / f"{source.stem}.ko"


def write_module(source: Path, destination: Path) -> None:
    """Copy a module's file, uncompressed, so that init_module(2) takes it."""
    content = source.read_bytes()
    destination.write_bytes(lzma.decompress(content) if source.suffix == ".xz" else content)


def provide(suite: str) -> KernelBuild:
    """The newest cloud kernel of `suite` with its modules, headers and compiler, from the cache or Debian's archive."""
    with step(f"kernel of Debian {suite} with modules and headers") as current:
        cache = Cache(cache_root())
        kind = f"kernel-build-{suite}"
        key = content_key([guest_kernel.key(), *_PACKAGES, *_LEFTOVERS])
        folder, cached = cache.entry(kind, key, lambda partial: _fill(partial, suite, cache.log(kind)))
        current.outcome = "cached" if cached else "built"
        return KernelBuild(folder)


def _fill(folder: Path, suite: str, log: Path) -> None:
    archive, root = folder / "root.tar", folder / "root"
    bootstrap(suite, _PACKAGES, archive, folder, log)
    root.mkdir()
    run(["tar", "--extract", f"--file={archive}", f"--directory={root}"], log=log)
    archive.unlink()
    keep_boot_files(root / "boot", folder)
    for leftover in _LEFTOVERS:
        shutil.rmtree(root / leftover, ignore_errors=True)
    (root / "dev").mkdir()
