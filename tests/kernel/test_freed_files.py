"""What a finding about shared memory says would come back, and what comes back when one does what it says."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from memdiag_api.findings import Finding
from memdiag_api.memory_classes import ClassName
from planted.files import PlantedFile, SysvSegment, TmpfsMount, cached_file, sysv_segment, tmpfs_mount
from planted.sockets.common import MIB
from support.freed import about_process, assert_comes_back, findings, freed_by, kill, largest, may_be_killed

SMALL_FILES, SMALL_BYTES = 20, 8 * MIB
"""Each is too small for a finding of its own; the mount is not."""
LARGE_BYTES = 192 * MIB


@dataclass(frozen=True, slots=True)
class Planted:
    """All loads at once, so that one run sees them."""

    small_files: TmpfsMount
    unmounted: TmpfsMount
    unmounting: ExitStack
    """Closing it ends the process in whose mount namespace `unmounted` is: it unmounts it."""
    large_file: TmpfsMount
    deleted_file: PlantedFile
    segment: SysvSegment
    findings: list[Finding]

    def about(self, name: str) -> Finding:
        """The finding whose action names a file, a mount or a segment."""
        return largest(self.findings, lambda one: one.freed_by is not None and name in one.freed_by.action)


@pytest.fixture(scope="module")
def planted() -> Iterator[Planted]:
    with ExitStack() as loads:
        unmounting = loads.enter_context(ExitStack())
        small_files = loads.enter_context(tmpfs_mount(SMALL_FILES, SMALL_BYTES))
        unmounted = unmounting.enter_context(tmpfs_mount(SMALL_FILES, SMALL_BYTES))
        large_file = loads.enter_context(tmpfs_mount(1, LARGE_BYTES))
        loads.enter_context(may_be_killed())
        deleted_file = loads.enter_context(cached_file(LARGE_BYTES, deleted=True, folder=Path("/dev/shm")))
        segment = loads.enter_context(sysv_segment(LARGE_BYTES))
        yield Planted(small_files, unmounted, unmounting, large_file, deleted_file, segment, findings())


def inside(mount: TmpfsMount) -> Path:
    """The mount, which is in the namespace of its process."""
    return Path(f"/proc/{mount.pid}/root{mount.mount_point}")


def test_deleting_the_files_of_a_mount(planted: Planted) -> None:
    finding = planted.about(f"delete files in {planted.small_files.mount_point}")

    def delete() -> None:
        for file in inside(planted.small_files).iterdir():
            file.unlink()

    assert_comes_back(finding, delete)


def test_unmounting_it(planted: Planted) -> None:
    """It loses its files as if they were deleted: no process has them open."""
    assert_comes_back(planted.about(f"delete files in {planted.unmounted.mount_point}"), planted.unmounting.close)


def test_deleting_a_large_file(planted: Planted) -> None:
    (file,) = inside(planted.large_file).iterdir()
    assert_comes_back(planted.about(f"delete {planted.large_file.mount_point}/{file.name}"), file.unlink)


def test_ending_the_process_that_has_a_deleted_file_open(planted: Planted) -> None:
    pid = planted.deleted_file.pid
    finding = largest(planted.findings, about_process(pid, ClassName.SHMEM))
    assert freed_by(finding).action.startswith(f"close fd {planted.deleted_file.fd} of ")
    assert_comes_back(finding, lambda: kill(pid))


def test_removing_a_segment(planted: Planted) -> None:
    finding = planted.about(f"ipcrm -m {planted.segment.segment}, ")
    command = freed_by(finding).action.partition(",")[0].split()
    assert shutil.which(command[0])
    assert_comes_back(finding, lambda: subprocess.run(command, check=True))
