"""Recognizing files by their operations."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets.file_kinds import FileKind, FileKinds
from memdiag_node.sockets.source import FOUND_DTYPE

TUN, TIMER, NAMELESS = 0x1000, 0x2000, 0x3000
RELEASE = {TUN: 0x9000, TIMER: 0x9100, NAMELESS: 0}
NAMES = {0x9001: "tun_chr_close+0x1/0x80 [tun]", 0x9101: "timerfd_release+0x1/0x20"}


class Kernel:
    """Counts what is asked, and keeps what is published."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.published: dict[int, FileKind] = {}
        self.kinds = FileKinds(release_of=self.release_of, read_names=self.names, publish=self.published.__setitem__)

    def release_of(self, operations: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return np.array([RELEASE[one] for one in operations.tolist()], "<u8")

    def names(self, addresses: Sequence[int]) -> Sequence[str]:
        self.asked += addresses
        return [NAMES[address] for address in addresses]


def records(*rows: tuple[int, int, int, int]) -> npt.NDArray[np.void]:
    """Rows of object, pid, fd, kind."""
    return np.array([(address, pid, fd, 0, kind) for address, pid, fd, kind in rows], FOUND_DTYPE)


def unnamed(operations: int, address: int, fd: int) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    return (operations, 0, 0, FileKind.OPERATIONS), (address, 1, fd, FileKind.UNNAMED)


def test_new_operations_are_named_once_and_published() -> None:
    kernel = Kernel()
    found = kernel.kinds.named(
        records(
            (0x50, 1, 2, FileKind.SOCKET),
            *unnamed(TUN, 0x60, 3),
            *unnamed(TIMER, 0x70, 4),
            *unnamed(TUN, 0x80, 5),
            *unnamed(NAMELESS, 0x90, 6),
        )
    )
    assert found[["socket", "fd", "kind"]].tolist() == [
        (0x50, 2, FileKind.SOCKET),
        (0x60, 3, FileKind.TUN),
        (0x80, 5, FileKind.TUN),
    ]
    assert kernel.published == {TUN: FileKind.TUN, TIMER: FileKind.OTHER, NAMELESS: FileKind.OTHER}
    assert sorted(kernel.asked) == [0x9001, 0x9101]
    assert len(kernel.kinds.named(records(*unnamed(TUN, 0xA0, 7)))) == 1
    assert sorted(kernel.asked) == [0x9001, 0x9101]


def test_what_was_learned_from_an_own_file_needs_no_name() -> None:
    kernel = Kernel()
    kernel.kinds.learn(TUN, FileKind.IO_URING)
    assert kernel.kinds.named(records(*unnamed(TUN, 0x60, 3)))["kind"].tolist() == [FileKind.IO_URING]
    assert kernel.asked == []


def test_operations_without_a_file_after_them_are_dropped() -> None:
    assert len(Kernel().kinds.named(records((TUN, 0, 0, FileKind.OPERATIONS)))) == 0
