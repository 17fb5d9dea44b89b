"""Reading words of kernel memory by their addresses (memory.bpf.h).

Addresses are keys inside the runner and are never published.
"""

import mmap
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, block_layout, enum_defines, offsets
from memdiag_node.kernel.linear_map import linear_to_page, slab_layout
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.resource import Resource

_SOURCE = Path(__file__).with_suffix(".bpf.c")
_WORDS = 4096
_BATCH_DTYPE = np.dtype(("<u8", (_WORDS,)))


class Fact(IntEnum):
    """A fact about the running kernel."""

    CURRENT_TASK = 0
    """struct task_struct of the thread of this process that last ran `peek`."""
    LINEAR_TO_PAGE = 1
    """See `linear_to_page`."""
    NET_OPERATIONS = 2
    """The `ns.ops` of every network namespace, a value that is rare elsewhere in memory."""
    SOCKET_FILE_OPERATIONS = 3
    """The `f_op` of a socket's file."""
    JIFFIES = 4
    """The kernel's clock in jiffies, when a socket was last described."""


MEMORY_DEFINES = {"WORDS": _WORDS, "FACTS": len(Fact), **enum_defines("FACT", Fact)}
"""The defines of memory.bpf.h."""
MEMORY_MAPS = {"words": _BATCH_DTYPE, "facts": np.dtype("<u8")}
"""The maps of memory.bpf.h, as read here."""

_FIELDS: tuple[Field, ...] = (
    ("TASK_FILES", "task_struct", "files"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
    ("FILE_PRIVATE", "file", "private_data"),
    ("SOCKET_SK", "socket", "sk"),
    ("SOCK_PROT", "sock", "__sk_common.skc_prot"),
    ("PROTO_SLAB", "proto", "slab"),
    ("TASK_NAMESPACES", "task_struct", "nsproxy"),
    ("NAMESPACES_NET", "nsproxy", "net_ns"),
    ("NET_OPERATIONS", "net", "ns.ops"),
)


def memory_layout(btf: Btf) -> dict[str, int]:
    """The offsets that `KernelMemory` needs. Raises BtfError naming what this kernel lacks."""
    page_shift = mmap.PAGESIZE.bit_length() - 1
    return {**offsets(btf, _FIELDS), **slab_layout(btf), **block_layout(btf), "PAGE_SHIFT": page_shift}


def open_memory(at: Mapping[str, int], parts: ExitStack) -> "KernelMemory":
    """Kernel memory, read by a program of its own, to be closed with `parts`. Raises BpfError."""
    bpf = parts.enter_context(BpfObject(_SOURCE, MEMORY_DEFINES, MEMORY_MAPS))
    return parts.enter_context(KernelMemory(bpf, at))


class KernelMemory(Resource):
    """The kernel's memory, read through `bpf`, whose source includes memory.bpf.h and which must stay open."""

    def __init__(self, bpf: BpfObject, at: Mapping[str, int]) -> None:
        """`at` is the result of `memory_layout`. Raises BpfError if the kernel rejects the program."""
        self._at = at
        self._peek = bpf.runnable("peek")
        with self._opening() as parts:
            self._words = bpf.view("words", np.dtype("<u8"), _WORDS)
            self._facts = bpf.view("facts", MEMORY_MAPS["facts"], len(Fact))
            for view in ("_words", "_facts"):  # the mapping cannot be closed while a numpy view uses it
                parts.callback(delattr, self, view)
            self.own_net = self._follow_task("TASK_NAMESPACES", "NAMESPACES_NET")
            """Address of this process's network namespace."""
            self.learn(Fact.NET_OPERATIONS, self.word(self.own_net + at["NET_OPERATIONS"]))
            if "HAS_SLAB" in at:
                self.learn(Fact.LINEAR_TO_PAGE, linear_to_page(self, at, cache=self.any_slab_cache()))

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """The 8 bytes at each address; 0 where they cannot be read."""
        wanted = np.asarray(addresses, "<u8")
        values = np.zeros(len(wanted), "<u8")
        for start in range(0, len(wanted), _WORDS):
            piece = np.maximum(wanted[start : start + _WORDS], 1)  # 0 would end the batch; address 1 is unreadable too
            self._words[: len(piece)] = piece
            self._words[len(piece) :] = 0
            self._peek.run()
            values[start : start + len(piece)] = self._words[: len(piece)]
        return values

    def word(self, address: int) -> int:
        """The 8 bytes at one address; 0 where they cannot be read."""
        return int(self.peek([address])[0])

    def fact(self, which: Fact) -> int:
        """A fact about this kernel; 0 if not known."""
        return int(self._facts[which])

    def learn(self, which: Fact, value: int) -> None:
        """Store a fact, for the programs too."""
        self._facts[which] = value

    def current_task(self) -> int:
        """Address of the struct task_struct of the calling thread."""
        self.peek([1])  # any address will do: the run itself stores the current task
        return self.fact(Fact.CURRENT_TASK)

    def file(self, fd: int) -> int:
        """Address of the struct file of one of this process's fds."""
        files = self._follow_task("TASK_FILES", "FILES_TABLE", "TABLE_FILES")
        return self.word(files + 8 * fd)

    def _follow_task(self, *fields: str) -> int:
        return self._follow(self.current_task(), *fields)

    def _follow(self, at: int, *fields: str) -> int:
        """Follow pointers from a structure, by the names of their offsets."""
        for name in fields:
            at = self.word(at + self._at[name])
        return at

    def texts(self, addresses: npt.NDArray[np.uint64], max_bytes: int) -> list[bytes]:
        """The text at each address, up to its NUL byte or `max_bytes`, a multiple of 8."""
        words = addresses[:, np.newaxis] + np.arange(0, max_bytes, 8, dtype="<u8")
        rows = self.peek(words.reshape(-1)).reshape(words.shape)
        return [row.tobytes().split(b"\0")[0] for row in rows]

    def any_slab_cache(self) -> int:
        """Address of a kmem_cache, from which all are reached: the one of a UNIX socket of this process."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
            return self._follow(self.file(own.fileno()), "FILE_PRIVATE", "SOCKET_SK", "SOCK_PROT", "PROTO_SLAB")
