"""What the finding about removed cgroups says would come back, and what comes back when the kernel drops its caches."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from memdiag_api.findings import Finding, FindingKind
from memdiag_api.memory_classes import ClassName
from planted.memory import MIB
from support.freed import TOLERANCE, bytes_back, findings, freed_by, freed_bytes, largest
from support.memory_cgroup import container_cgroup, run_in_cgroup

GROUPS, FILE_BYTES = 60, 5 * MIB
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CLASSES = (ClassName.FILE_CACHE, ClassName.PERCPU)
"""The cgroups' structures are in SUnreclaim, which drops by more: by objects of what else was cached."""
WRITE = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, bytes(int(sys.argv[2])))
os.fsync(fd)
"""


def drop_caches() -> None:
    """What is not written yet cannot be dropped."""
    os.sync()
    DROP_CACHES.write_text("3")


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Finding]:
    """Cgroups that are removed while files that they wrote are cached. Nothing else that can be dropped is left."""
    with container_cgroup() as container:
        container.enable_memory_below()
        drop_caches()
        for number in range(GROUPS):
            inner = container.path / str(number)
            inner.mkdir()
            assert run_in_cgroup(inner, WRITE, str(tmp_path / str(number)), str(FILE_BYTES)) == 0
            inner.rmdir()
        yield largest(findings(), lambda one: one.kind is FindingKind.REMOVED_CGROUPS)


def test_dropping_caches_frees_what_removed_cgroups_hold(found: Finding) -> None:
    assert found.size_bytes >= GROUPS * FILE_BYTES
    assert "drop_caches" in freed_by(found).action
    back = bytes_back(drop_caches, freed_bytes(found), *CLASSES)
    assert freed_bytes(found) == pytest.approx(sum(back.values()), rel=TOLERANCE), (found.sentence, back)
