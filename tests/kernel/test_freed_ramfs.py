"""What findings about files without storage say would come back, and what comes back when one does what they say."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from memdiag_api.findings import Finding, FindingKind
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import OwnerKind
from planted.files import PlantedFile, TmpfsMount, secret_memory, tmpfs_mount
from planted.sockets.common import MIB
from support.freed import about_process, assert_comes_back, findings, kill, largest, may_be_killed

FILES, FILE_BYTES = 20, 8 * MIB
SECRET_BYTES = 160 * MIB


@dataclass(frozen=True, slots=True)
class Planted:
    """Both loads at once, so that one run sees them."""

    mount: TmpfsMount
    unmounting: ExitStack
    """Closing it ends the process in whose mount namespace the ramfs is: it unmounts it."""
    secret: PlantedFile
    findings: list[Finding]


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    with ExitStack() as loads:
        unmounting = loads.enter_context(ExitStack())
        mount = unmounting.enter_context(tmpfs_mount(FILES, FILE_BYTES, "ramfs"))
        loads.enter_context(may_be_killed())
        secret = loads.enter_context(secret_memory(SECRET_BYTES))
        yield Planted(mount, unmounting, secret, findings())


def test_unmounting_a_ramfs(planted: Planted) -> None:
    finding = largest(
        planted.findings, lambda one: one.freed_by is not None and planted.mount.mount_point in one.freed_by.action
    )
    assert (finding.kind, finding.memory_class) == (FindingKind.SHARED_MEMORY, ClassName.FILE_CACHE)
    assert not finding.reclaimable
    assert finding.size_bytes == pytest.approx(planted.mount.size_bytes, rel=0.02)
    assert finding.owner is not None
    assert finding.owner.kind is OwnerKind.FILE_SYSTEM
    assert_comes_back(finding, planted.unmounting.close, unevictable=True)


def test_ending_the_process_that_has_secret_memory(planted: Planted) -> None:
    finding = largest(planted.findings, about_process(planted.secret.pid, ClassName.FILE_CACHE))
    assert finding.size_bytes == pytest.approx(planted.secret.size_bytes, rel=0.02)
    assert finding.owner is not None
    assert planted.secret.fd in finding.owner.fds
    assert_comes_back(finding, lambda: kill(planted.secret.pid), unevictable=True)
