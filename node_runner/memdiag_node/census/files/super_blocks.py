"""The file systems of inodes and dentries: type, device, and whether it is the kernel's own mount."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable

_NAME_BYTES = 32  # of s_id and of every type's name
_KERNEL_MOUNT = 1 << 22  # include/linux/fs.h, SB_KERNMOUNT
_FIELDS: tuple[Field, ...] = (
    ("SUPER_BLOCK_TYPE", "super_block", "s_type"),
    ("SUPER_BLOCK_ID", "super_block", "s_id"),
    ("SUPER_BLOCK_DEVICE", "super_block", "s_dev"),
    ("SUPER_BLOCK_FLAGS", "super_block", "s_flags"),
    ("SUPER_BLOCK_ROOT", "super_block", "s_root"),
    ("DENTRY_SUPER_BLOCK", "dentry", "d_sb"),
    ("TYPE_NAME", "file_system_type", "name"),
)


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system, or one of the kernel's own."""

    name: str
    """Of its type: ext4, tmpfs."""
    device: str
    """Name of its block device; of a file system without one mostly its type again."""
    is_internal: bool
    """Mounted by the kernel for itself, without a path: memfd, System V segments, block devices."""
    device_number: int = 0
    """st_dev of its files, in the kernel's form: 20 bits of minor number."""


_UNKNOWN = FileSystem("", "", is_internal=False)


def super_block_fields(btf: Btf) -> dict[str, int]:
    """Where a super block has its names, with HAS_SUPER_BLOCKS."""
    return optional_offsets(btf, "HAS_SUPER_BLOCKS", _FIELDS)


def read_file_systems(
    memory: KernelMemory, at: Mapping[str, int], super_blocks: npt.NDArray[np.uint64]
) -> list[FileSystem]:
    """Return the file system of each super block. `at` has the result of `super_block_fields`.

    One whose root does not belong to it has no name: it is unmounted, or what refers to it was freed meanwhile.
    """
    if "HAS_SUPER_BLOCKS" not in at:
        return [_UNKNOWN for _ in super_blocks]
    types = memory.peek(super_blocks + np.uint64(at["SUPER_BLOCK_TYPE"]))
    names = memory.texts(memory.peek(types + np.uint64(at["TYPE_NAME"])), _NAME_BYTES)
    devices = memory.texts(super_blocks + np.uint64(at["SUPER_BLOCK_ID"]), _NAME_BYTES)
    flags = memory.peek(super_blocks + np.uint64(at["SUPER_BLOCK_FLAGS"])) & np.uint64(_KERNEL_MOUNT)
    numbers = memory.peek(super_blocks + np.uint64(at["SUPER_BLOCK_DEVICE"])) & np.uint64(0xFFFFFFFF)
    roots = memory.peek(super_blocks + np.uint64(at["SUPER_BLOCK_ROOT"]))
    is_own = memory.peek(roots + np.uint64(at["DENTRY_SUPER_BLOCK"])) == super_blocks
    rows = zip(names, devices, flags.tolist(), numbers.tolist(), strict=True)
    systems = [
        FileSystem(printable(name, _NAME_BYTES), printable(device, _NAME_BYTES), bool(flag), number)
        for name, device, flag, number in rows
    ]
    return [one if own else _UNKNOWN for one, own in zip(systems, is_own.tolist(), strict=True)]
