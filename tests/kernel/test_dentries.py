"""The directory cache of this machine, against planted names and the kernel's own figures."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.census.dentries import DentryCensus
from memdiag_node.census.files.dentries import dentries_record, fields, read_dentries
from memdiag_node.census.files.paths import cut_path
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from planted import files
from support.slab_census import opened_memory, slabinfo_rows, take_slab_census

_NAMES = 100_000
_LONG_NAMES, _LONG_NAME_BYTES = 20_000, 200
_KMALLOC_BYTES = 256  # the class for such a name and its head


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


def take(memory: KernelMemory, btf: Btf, *, with_paths: bool = True) -> DentryCensus:
    raw = read_dentries(take_slab_census(memory, btf), fields(btf), with_paths=with_paths)
    assert raw
    return dentries_record(raw)


def test_negative_entries_of_a_directory_are_found_with_its_path(memory: KernelMemory, btf: Btf) -> None:
    with files.negative_dentries(_NAMES) as planted:
        census = take(memory, btf)
    path = cut_path(planted.folder.strip("/").split("/"))
    (found,) = [one for one in census.directories if one.path == path]
    assert found.entries == pytest.approx(planted.names, rel=0.02)
    assert found.negative == pytest.approx(planted.names, rel=0.02)
    (system,) = [
        one for one in census.file_systems if (one.file_system, one.device) == (found.file_system, found.device)
    ]
    assert system.negative >= found.negative
    assert census.negative >= system.negative
    assert census.unused >= found.negative


def test_the_number_of_entries_agrees_with_the_kernels_own(memory: KernelMemory, btf: Btf) -> None:
    before = slabinfo_rows()["dentry"]
    census = take(memory, btf)
    after = slabinfo_rows()["dentry"]
    own_total, own_unused, _, _, own_negative, _ = map(int, Path("/proc/sys/fs/dentry-state").read_text().split())
    # slabinfo counts free objects on a CPU's list as active. The kernel's unused ones are those on its LRU list, where
    # one that is used again stays for a while.
    fewest, most = sorted((before.active, after.active))
    assert fewest * 0.98 - after.uncertain <= census.entries <= most * 1.01 + after.uncertain
    assert census.entries == pytest.approx(own_total, rel=0.02)
    assert 0 < census.unused <= own_unused * 1.02
    assert census.negative == pytest.approx(own_negative, rel=0.02)
    assert census.size_bytes >= min(before.places, after.places) * census.negative_bytes // census.negative


def test_long_names_are_counted_with_what_is_allocated_for_them(memory: KernelMemory, btf: Btf) -> None:
    before = take(memory, btf)
    with long_names(_LONG_NAMES):
        census = take(memory, btf)
    added = census.long_names_bytes - before.long_names_bytes
    assert added == pytest.approx(_LONG_NAMES * _KMALLOC_BYTES, rel=0.05)


@contextlib.contextmanager
def long_names(count: int) -> Iterator[None]:
    """Look up names that do not exist and that are too long for their entries."""
    with tempfile.TemporaryDirectory(dir=files.REAL_FOLDER, prefix="planted-") as folder:
        for number in range(count):
            with contextlib.suppress(FileNotFoundError):
                Path(folder, f"{number:0{_LONG_NAME_BYTES}}").stat()
        yield


def test_without_paths_no_directory_is_named(memory: KernelMemory, btf: Btf) -> None:
    census = take(memory, btf, with_paths=False)
    assert {one.path for one in (*census.directories, *census.file_systems)} == {""}
    assert census.directories
