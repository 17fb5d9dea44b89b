"""Recognize files by their operations (f_op): what kind of object an fd leads to.

A kind is learned from a file of it that this process has open, or from the name of the function that releases such a
file. Names work for files that this process may not open: a runner pod has no /dev/net/tun, and its seccomp profile
may forbid io_uring_setup. Without names (CONFIG_KALLSYMS) only the first way is left.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.symbols import function_name

_MAX_NAMES_AT_ONCE = 48


class FileKind(IntEnum):
    """The kind of an object that an fd leads to; `found.kind` in sockets.bpf.c."""

    SOCKET = 0
    PIPE = 1
    PERF_EVENT = 2
    BPF_MAP = 3
    BPF_PROGRAM = 4
    BPF_LINK = 5
    IO_URING = 6
    TUN = 7
    TAP = 8
    INOTIFY = 9
    FANOTIFY = 10
    DRM = 11
    OTHER = 12
    """No kind of holder."""
    UNNAMED = 13
    """Of a file whose operations, in the record before it, are not known yet."""
    OPERATIONS = 14
    """Not a file: the record has the operations of the file in the next record."""


_RELEASED_BY = {
    "perf_release": FileKind.PERF_EVENT,
    "bpf_map_release": FileKind.BPF_MAP,
    "bpf_prog_release": FileKind.BPF_PROGRAM,
    "bpf_link_release": FileKind.BPF_LINK,
    "io_uring_release": FileKind.IO_URING,
    "tun_chr_close": FileKind.TUN,
    "tap_release": FileKind.TAP,
    "inotify_release": FileKind.INOTIFY,
    "fanotify_release": FileKind.FANOTIFY,
    "drm_release": FileKind.DRM,
    "drm_release_noglobal": FileKind.DRM,
}
"""The `release` of the file operations of each kind."""


class FileKinds:
    """What is known of file operations: the kind of each, by its address.

    `read_names` returns the text of functions by their addresses (kernel/symbols.py), `release_of` the address of the
    function that releases files, for each address of operations; `publish` passes what is learned to the iterator.
    """

    def __init__(
        self,
        *,
        release_of: Callable[[npt.NDArray[np.uint64]], npt.NDArray[np.uint64]],
        read_names: Callable[[Sequence[int]], Sequence[str]],
        publish: Callable[[int, FileKind], None],
    ) -> None:
        self._release_of = release_of
        self._read_names = read_names
        self._publish = publish
        self._kinds: dict[int, FileKind] = {}

    def learn(self, operations: int, kind: FileKind) -> None:
        """Store the kind of files with these operations."""
        if operations and operations not in self._kinds:
            self._kinds[operations] = kind
            self._publish(operations, kind)

    def named(self, records: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        """Return the records (FOUND_DTYPE) of the iterator with a kind each, without files of no kind of holder."""
        heads = np.flatnonzero(records["kind"] == FileKind.OPERATIONS)
        if not len(heads):
            return records
        records = records.copy()
        heads = heads[heads + 1 < len(records)]
        operations = records["socket"][heads]
        new = np.array([one for one in np.unique(operations) if int(one) not in self._kinds], "<u8")
        self._learn_by_name(new)
        kinds = [self._kinds.get(one, FileKind.OTHER) for one in operations.tolist()]
        records["kind"][heads + 1] = kinds
        kept: npt.NDArray[np.void] = records[~np.isin(records["kind"], (FileKind.OPERATIONS, FileKind.OTHER))]
        return kept

    def _learn_by_name(self, operations: npt.NDArray[np.uint64]) -> None:
        for start in range(0, len(operations), _MAX_NAMES_AT_ONCE):
            part = operations[start : start + _MAX_NAMES_AT_ONCE]
            releases = self._release_of(part)
            # The text is that of a return address, which belongs to the call before it.
            found = [int(release) + 1 for release in releases if release]
            texts = dict(zip(found, self._read_names(found), strict=True)) if found else {}
            for one, release in zip(part.tolist(), releases.tolist(), strict=True):
                name = function_name(texts.get(release + 1, ""))
                self.learn(one, _RELEASED_BY.get(name, FileKind.OTHER))
