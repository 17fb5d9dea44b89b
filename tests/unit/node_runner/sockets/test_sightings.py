"""Collecting fds: each once, sorted, and in bounded memory."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.sockets.sightings import Sightings, addresses_of, merged, not_in
from memdiag_node.sockets.source import FOUND_DTYPE

MIB = 1 << 20
PIECE = 1_365  # what the kernel's iterator returns at a time: 32 KiB

MILLIONS = """
import resource, sys
import numpy as np
from memdiag_node.sockets.source import FOUND_DTYPE
from memdiag_node.sockets.sightings import Sightings, addresses_of, merged
from memdiag_node.sockets.scanner import _give_back_what_is_freed

_give_back_what_is_freed()
count, kind, piece = int(sys.argv[1]), int(sys.argv[2]), 1365
def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak_bytes()
sightings = Sightings()
for start in range(0, count, piece):
    numbers = np.arange(start, min(start + piece, count))
    records = np.zeros(len(numbers), FOUND_DTYPE)
    records["socket"] = np.uint64(0xffff888000000000) + (numbers * 0x9e3779b1 % (1 << 32)).astype("<u8") * np.uint64(64)
    records["pid"], records["fd"], records["kind"] = numbers // 1000 + 1, numbers % 1000, kind
    sightings.add(records)
owners, files = sightings.owners(), sightings.files()
candidates = merged(addresses_of(owners), np.arange(1000, dtype="<u8"))
print(peak_bytes() - before, len(owners) + len(files), sightings.left_out, len(candidates))
"""


def records(*rows: tuple[int, int, int, int]) -> npt.NDArray[np.void]:
    """Of (address, pid, fd, kind)."""
    found = np.zeros(len(rows), FOUND_DTYPE)
    for row, (address, pid, fd, kind) in zip(found, rows, strict=True):
        row["socket"], row["pid"], row["fd"], row["kind"] = address, pid, fd, kind
    return found


def test_sockets_and_other_files_are_kept_apart_each_once_and_sorted() -> None:
    sightings = Sightings(room=100)
    sightings.add(records((9, 2, 3, FileKind.SOCKET), (5, 7, 1, FileKind.PIPE), (4, 2, 8, FileKind.SOCKET)))
    sightings.add(records((9, 1, 3, FileKind.SOCKET), (9, 2, 3, FileKind.SOCKET), (5, 7, 1, FileKind.PIPE)))
    sightings.add(records((3, 7, 2, FileKind.BPF_MAP)))
    owners, files = sightings.owners(), sightings.files()
    assert owners.tolist() == [(4, 2, 8), (9, 1, 3), (9, 2, 3)]
    assert files[["socket", "pid", "fd", "kind"]].tolist() == [(5, 7, 1, FileKind.PIPE), (3, 7, 2, FileKind.BPF_MAP)]
    assert addresses_of(owners).tolist() == [4, 9]
    assert sightings.left_out == 0


def test_what_repeats_takes_no_room() -> None:
    """A thousand threads, each with its own fd table."""
    sightings = Sightings(room=64)
    for _ in range(1_000):
        sightings.add(records(*((address, 1, address, FileKind.SOCKET) for address in range(1, 41))))
    assert len(sightings.owners()) == 40
    assert sightings.left_out == 0


def test_what_is_beyond_the_room_is_counted() -> None:
    sightings = Sightings(room=64)
    for start in range(0, 200, 40):
        sightings.add(records(*((1 + start + number, 1, number, FileKind.SOCKET) for number in range(40))))
    assert len(sightings.owners()) == 64
    assert sightings.left_out == 200 - 64


def test_nothing_at_all_is_nothing() -> None:
    sightings = Sightings(room=8)
    sightings.add(records())
    assert len(sightings.owners()) == len(sightings.files()) == len(addresses_of(sightings.owners())) == 0


ADDRESSES = st.lists(st.integers(1, 50), max_size=40)


@given(ADDRESSES, ADDRESSES)
def test_sets_of_addresses_agree_with_numpys(left: list[int], right: list[int]) -> None:
    known, others = np.unique(np.array(left, "<u8")), np.array(right, "<u8")
    assert merged(known, others).tolist() == np.union1d(known, others).tolist()
    assert not_in(others, known).tolist() == np.setdiff1d(others, known).tolist()


@pytest.mark.parametrize(("kind", "limit_mib"), [(FileKind.SOCKET, 144), (FileKind.PIPE, 160)])
def test_three_million_fds_fit_beside_the_rest_of_a_runner(kind: int, limit_mib: int) -> None:
    """The smallest runner has 320 MiB; at that point its other memory is within 128 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", MILLIONS, "3000000", str(kind)], capture_output=True, text=True, check=True
    )
    peak_bytes, kept, left_out, candidates = map(int, done.stdout.split())
    assert peak_bytes < limit_mib * MIB
    assert (kept, left_out) == (3_000_000, 0)
    assert candidates == 1_000 + (3_000_000 if kind == FileKind.SOCKET else 0)


def test_beyond_the_bound_memory_grows_no_more() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MILLIONS, "8000000", str(FileKind.SOCKET)], capture_output=True, text=True, check=True
    )
    peak_bytes, kept, left_out, _ = map(int, done.stdout.split())
    assert peak_bytes < 160 * MIB
    assert kept == 3 << 20
    assert left_out == 8_000_000 - kept
