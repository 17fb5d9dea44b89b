"""The fds of a node's processes that hold sockets, pipes and the like: each once, in bounded memory."""

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.sockets.source import FOUND_DTYPE

OWNER_DTYPE = np.dtype([("socket", "<u8"), ("pid", "<u4"), ("fd", "<u4")])
"""An fd of a socket."""

MAX_SIGHTINGS = 3 << 20
"""16 bytes each for sockets, 24 for other files, and the same again while they are sorted."""
_WORTHWHILE_SHARE = 0.125


class Sightings:
    """Collects the records of the task iterator (FOUND_DTYPE) piece by piece; records beyond `room` are only counted.

    The tables are allocated in full at the start: the kernel provides memory only for pages that are written.
    """

    def __init__(self, room: int = MAX_SIGHTINGS) -> None:
        self._room = room
        self._sockets = np.empty(room, OWNER_DTYPE)
        self._socket_count = 0
        self._files = np.empty(room, FOUND_DTYPE)
        self._file_count = 0
        self._is_full = False
        self.left_out = 0

    def add(self, records: npt.NDArray[np.void]) -> None:
        """Add one piece."""
        while len(records):
            if not self._free():
                self._make_room()
            if not self._free():
                self.left_out += len(records)
                return
            part = records[: self._free()]
            self._keep(part)
            records = records[len(part) :]

    def _keep(self, kept: npt.NDArray[np.void]) -> None:
        is_socket = kept["kind"] == FileKind.SOCKET
        sockets, files = kept[is_socket], kept[~is_socket]
        place = self._sockets[self._socket_count : self._socket_count + len(sockets)]
        for column in OWNER_DTYPE.names or ():
            place[column] = sockets[column]
        self._files[self._file_count : self._file_count + len(files)] = files
        self._socket_count += len(sockets)
        self._file_count += len(files)

    def owners(self) -> npt.NDArray[np.void]:
        """Every fd of a socket once (OWNER_DTYPE), sorted by socket, pid, fd."""
        self._socket_count = _sort_and_deduplicate(self._sockets[: self._socket_count], ("socket", "pid", "fd"))
        return self._sockets[: self._socket_count]

    def files(self) -> npt.NDArray[np.void]:
        """Every fd of another file once (FOUND_DTYPE), sorted by kind, pid, fd."""
        keys = ("kind", "socket", "pid", "fd")
        self._file_count = _sort_and_deduplicate(self._files[: self._file_count], keys)
        return self._files[: self._file_count]

    def _free(self) -> int:
        return self._room - self._socket_count - self._file_count

    def _make_room(self) -> None:
        """Drop duplicates: threads with their own fd table show the same fds again."""
        if not self._is_full:
            self.owners()
            self.files()
            self._is_full = self._free() < _WORTHWHILE_SHARE * self._room


def addresses_of(owners: npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    """The sockets of `owners`, which are sorted, each once."""
    sockets = owners["socket"]
    is_first = np.ones(len(sockets), bool)
    np.not_equal(sockets[1:], sockets[:-1], out=is_first[1:])
    addresses: npt.NDArray[np.uint64] = sockets[is_first]
    return addresses


def not_in(addresses: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The `addresses` that are not in `known`, sorted and each once. `known` is sorted, and not copied."""
    addresses = np.unique(addresses)
    if not len(known):
        return addresses
    place = np.minimum(np.searchsorted(known, addresses), len(known) - 1)
    new: npt.NDArray[np.uint64] = addresses[known[place] != addresses]
    return new


def merged(known: npt.NDArray[np.uint64], more: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The union of both, sorted and each once. `known` is sorted, without duplicates."""
    more = not_in(more, known)
    return np.insert(known, np.searchsorted(known, more), more) if len(more) else known


def _sort_and_deduplicate(rows: npt.NDArray[np.void], keys: tuple[str, ...]) -> int:
    """Sort the rows in place and remove duplicates; returns the number left. By column, to need little memory."""
    order = np.lexsort([rows[key] for key in reversed(keys)])
    for column in rows.dtype.names or ():
        rows[column] = rows[column][order]
    del order
    is_first = np.ones(len(rows), bool)
    repeats = np.ones(max(0, len(rows) - 1), bool)
    for key in keys:
        repeats &= rows[key][1:] == rows[key][:-1]
    is_first[1:] = ~repeats
    if repeats.any():
        count = int(np.count_nonzero(is_first))
        for column in rows.dtype.names or ():
            rows[column][:count] = rows[column][is_first]
        return count
    return len(rows)
