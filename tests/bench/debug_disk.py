"""A disk for a guest with drgn and the debug information of the guest's kernel, which drgn cannot do without.

drgn reads DWARF, not BTF. Debian has it in a package of 320 MB (1.8 GB unpacked), of which only `vmlinux` is kept.
"""

from pathlib import Path

from local_cluster import guest_disk, registries
from local_cluster.cache import Cache, content_key
from local_cluster.paths import PROJECT, cache_root
from local_cluster.shell import run
from local_cluster.steps import step

_REQUIREMENTS = PROJECT / "requirements/bench.txt"
_GUEST_PYTHON = "3.13"  # Debian 13's, in the node runner's image
_PLATFORM = "manylinux_2_28_x86_64"
_REMEDY = "if the archive has a newer kernel only, `make clean-cache` and run it again"


def provide(suite: str, release: str) -> Path:
    """The disk for the kernel `release` of a Debian suite, from the cache, or from Debian's archive and PyPI."""
    with step(f"drgn and debug information of {release}") as current:
        cache = Cache(cache_root())
        key = content_key([release, _REQUIREMENTS, _GUEST_PYTHON, _PLATFORM])
        log = cache.log("debug-disk")
        folder, cached = cache.entry("debug-disk", key, lambda partial: _fill(partial, suite, release, log))
        current.outcome = "cached" if cached else "built"
        return folder / "disk.img"


def _fill(folder: Path, suite: str, release: str, log: Path) -> None:
    root, work = folder / "root", folder / "work"
    root.mkdir()
    work.mkdir()
    _download(work, suite, f"linux-image-{release}-dbg", log)
    (package,) = work.glob("*.deb")
    tree = work / "tree.tar"
    member = f"./usr/lib/debug/boot/vmlinux-{release}"
    with tree.open("wb"):
        run(["sh", "-c", 'dpkg-deb --fsys-tarfile "$1" > "$2"', "sh", package, tree], log=log)
    run(["tar", "--extract", f"--file={tree}", f"--directory={work}", member], log=log)
    (work / member).rename(root / "vmlinux")
    run(["rm", "--recursive", work])
    install = ["python3", "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    install += ["--root-user-action=ignore", f"--python-version={_GUEST_PYTHON}", f"--platform={_PLATFORM}"]
    run([*install, f"--target={root / 'drgn'}", f"--requirement={_REQUIREMENTS}"], log=log)
    guest_disk.make_disk(root, folder / "disk.img", log)


def _download(work: Path, suite: str, package: str, log: Path) -> None:
    """Download a package of any suite, with package lists apart from the machine's."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    sources = work / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in registries.debian_sources(suite)))
    settings = {
        "Dir::State": work / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    options = [f"--option={name}={value}" for name, value in settings.items()]
    for action in (["update"], ["download", package]):
        run(["apt-get", *options, *action], log=log, cwd=work, remedy=_REMEDY)
