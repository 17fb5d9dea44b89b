"""Which module files a guest loads, and in which order."""

import lzma
from pathlib import Path

import pytest

from local_cluster.guest_build import KernelBuild, write_module

DEPENDENCIES = """\
kernel/net/netfilter/nfnetlink.ko.xz:
kernel/net/netfilter/nf_tables.ko.xz: kernel/net/netfilter/nfnetlink.ko.xz kernel/lib/libcrc32c.ko.xz
kernel/net/netfilter/nft_compat.ko.xz: kernel/net/netfilter/nf_tables.ko.xz kernel/net/netfilter/nfnetlink.ko.xz \
kernel/lib/libcrc32c.ko.xz
kernel/lib/libcrc32c.ko.xz:
kernel/crypto/ghash-generic.ko.xz:
"""


@pytest.fixture
def build(tmp_path: Path) -> KernelBuild:
    modules = tmp_path / "root/usr/lib/modules/6.12.1-cloud-amd64"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(DEPENDENCIES)
    return KernelBuild(tmp_path)


def test_the_release_is_the_name_of_the_modules_folder(build: KernelBuild) -> None:
    assert build.release == "6.12.1-cloud-amd64"


def test_what_a_module_needs_comes_first_and_once(build: KernelBuild) -> None:
    names = [file.name.partition(".")[0] for file in build.module_files(["nft_compat", "nf_tables", "ghash-generic"])]
    assert names == ["libcrc32c", "nfnetlink", "nf_tables", "nft_compat", "ghash-generic"]


def test_what_the_kernel_lacks_or_has_built_in_is_left_out(build: KernelBuild) -> None:
    assert build.module_files(["sctp"]) == []


def test_a_compressed_module_is_written_uncompressed(tmp_path: Path) -> None:
    (tmp_path / "a.ko.xz").write_bytes(lzma.compress(b"\x7fELF"))
    (tmp_path / "b.ko").write_bytes(b"\x7fELF")
    for name in ("a.ko.xz", "b.ko"):
        write_module(tmp_path / name, tmp_path / "written")
        assert (tmp_path / "written").read_bytes() == b"\x7fELF"
