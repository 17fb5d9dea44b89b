"""What the finding about removed cgroups says would come back, and what comes back when their cache is dropped."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from memdiag_api.findings import Finding, FindingKind
from memdiag_api.memory_classes import ClassName
from planted.memory import MIB
from support.freed import TOLERANCE, bytes_back, evidence, findings, freed_by, freed_bytes, largest
from support.memory_cgroup import container_cgroup, run_in_cgroup

GROUPS, FILE_BYTES = 60, 5 * MIB
CLASSES = (ClassName.FILE_CACHE, ClassName.PERCPU)
"""The cgroups' structures are slab, of which other parts change by more."""
WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, bytes(int(sys.argv[2])))
os.fsync(fd)
"""


@dataclass(frozen=True, slots=True)
class Planted:
    """Cgroups that were removed while files that they wrote are cached."""

    files: list[Path]
    cached_before_bytes: int
    """Page cache of the removed cgroups that there were already."""
    finding: Finding


@pytest.fixture
def planted(tmp_path: Path) -> Iterator[Planted]:
    files = [tmp_path / str(number) for number in range(GROUPS)]
    with container_cgroup() as container:
        container.enable_memory_below()
        first = str(tmp_path / "first")
        assert run_in_cgroup(container.path, WRITE, first, "1") == 0  # so that Python's files are cached
        removed = evidence().removed_cgroups
        for number, file in enumerate(files):
            inner = container.path / str(number)
            inner.mkdir()
            assert run_in_cgroup(inner, WRITE, str(file), str(FILE_BYTES)) == 0
            inner.rmdir()
        finding = largest(findings(), lambda one: one.kind is FindingKind.REMOVED_CGROUPS)
        yield Planted(files, (removed.file_bytes or 0) if removed else 0, finding)


def drop(files: list[Path]) -> None:
    """Drop the cache of these files only, which is what drop_caches does with all files of the machine."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def test_dropping_caches_frees_what_removed_cgroups_hold(planted: Planted) -> None:
    assert "drop_caches" in freed_by(planted.finding).action
    expected_bytes = freed_bytes(planted.finding) - planted.cached_before_bytes
    assert expected_bytes == pytest.approx(GROUPS * FILE_BYTES, rel=TOLERANCE)
    back = bytes_back(lambda: drop(planted.files), expected_bytes, *CLASSES)
    assert expected_bytes == pytest.approx(sum(back.values()), rel=TOLERANCE), (planted.finding.sentence, back)
