"""Paths of directory entries, from the kernel's dentries and mounts (fs/d_path.c), and how they are cut."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable

MAX_PATH_LENGTH = 120
_MAX_DEPTH = 64
_MAX_MOUNTS = 1 << 10
"""Mounts of one file system that are looked at."""
_NAME_BYTES = 72
_NAME_LENGTH = 64  # a container's ID
_LEFT_OUT = "..."
_ENDS = 2
_OWNERS = frozenset({"pods", "containers", "snapshots", "overlay2", "overlay", "projects"})
"""Directories whose members are one owner each."""

_DENTRY: tuple[Field, ...] = (
    ("DENTRY_PARENT", "dentry", "d_parent"),
    ("DENTRY_NAME", "dentry", "d_name.name"),
    ("DENTRY_HASH_LENGTH", "dentry", "d_name.hash_len"),
    ("DENTRY_INODE", "dentry", "d_inode"),
    ("DENTRY_SUPER_BLOCK", "dentry", "d_sb"),
    ("DENTRY_USERS", "dentry", "d_lockref.count"),
)
_MOUNT: tuple[Field, ...] = (
    ("MOUNT_PARENT", "mount", "mnt_parent"),
    ("MOUNT_POINT", "mount", "mnt_mountpoint"),
    ("MOUNT_ROOT", "mount", "mnt.mnt_root"),
    ("MOUNT_NAMESPACE", "mount", "mnt_ns"),
    ("SUPER_BLOCK_MOUNTS", "super_block", "s_mounts"),
    ("SUPER_BLOCK_ROOT", "super_block", "s_root"),
)
_TASK: tuple[Field, ...] = (
    ("TASK_PARENT", "task_struct", "real_parent"),
    ("TASK_NAMESPACES", "task_struct", "nsproxy"),
    ("NAMESPACES_MOUNTS", "nsproxy", "mnt_ns"),
)


def path_fields(btf: Btf) -> dict[str, int]:
    """Where dentries and mounts have what is read here, with HAS_DENTRIES and HAS_MOUNTS where a kernel has them."""
    found = optional_offsets(btf, "HAS_DENTRIES", _DENTRY)
    alias = "d_u.d_alias" if btf.has_field("dentry", "d_u.d_alias") else "d_alias"  # 7.1
    found |= optional_offsets(btf, "HAS_ALIASES", (("DENTRY_ALIAS", "dentry", alias),))
    if btf.has_field("mount", "mnt_next_for_sb"):  # 6.17: a list of its own kind, the latest mount first
        found |= optional_offsets(btf, "HAS_MOUNTS", (*_MOUNT, *_TASK, ("MOUNT_NEXT", "mount", "mnt_next_for_sb")))
        return found | {"LATEST_MOUNT_FIRST": 1} if "HAS_MOUNTS" in found else found
    return found | optional_offsets(btf, "HAS_MOUNTS", (*_MOUNT, *_TASK, ("MOUNT_NEXT", "mount", "mnt_instance")))


def cut_path(components: Sequence[str], *, max_length: int = MAX_PATH_LENGTH) -> str:
    """Return an absolute path, cut to what shows whose it is.

    Kept are the first two and the last two components, and what names a pod, a container or a snapshot. If that is
    still too long, the middle of the text is left out.
    """
    size = len(components)
    kept = {*range(min(_ENDS, size)), *range(max(0, size - _ENDS), size)}
    for place, name in enumerate(components[:-1]):
        if name in _OWNERS:
            kept |= {place, place + 1}
    if size - len(kept) <= 1:
        kept = set(range(size))
    parts: list[str] = []
    for place, name in enumerate(components):
        if place in kept:
            parts.append(name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - len(_LEFT_OUT)] + _LEFT_OUT)
        elif parts[-1:] != [_LEFT_OUT]:
            parts.append(_LEFT_OUT)
    text = "/" + "/".join(parts)
    if len(text) <= max_length:
        return text
    tail = max_length // 2
    return text[: max_length - tail - len(_LEFT_OUT)] + _LEFT_OUT + text[-tail:]


class PathReader:
    """Reads the paths of dentries, as the node's first process sees them where it can."""

    def __init__(self, memory: KernelMemory, at: Mapping[str, int]) -> None:
        """`at` has the result of `path_fields`."""
        self._memory = memory
        self._at = at
        self._mount_of: dict[int, int] = {}
        self._first_namespace = self._mounts_of_first_process() if "HAS_MOUNTS" in at else 0

    def paths(self, dentries: npt.NDArray[np.uint64], super_blocks: npt.NDArray[np.uint64]) -> list[list[str]]:
        """Return the components of each dentry's path, from the top; `super_blocks`: of each dentry.

        Of a file system without a mount of its root, the path starts there.
        """
        found: list[list[bytes]] = [[] for _ in dentries]
        if "HAS_DENTRIES" not in self._at:
            return [[] for _ in dentries]
        mounts = self._mounts(super_blocks)
        dentry = dentries.copy()
        going = np.flatnonzero(dentry)
        for _ in range(_MAX_DEPTH):
            if not len(going):
                break
            going = self._cross_mounts(dentry, mounts, going)
            parents = self._read(dentry[going], "DENTRY_PARENT")
            names = self._names(dentry[going])
            is_top = (parents == dentry[going]) | (parents == 0)
            for place, name, top in zip(going.tolist(), names, is_top.tolist(), strict=True):
                if not (top and name in (b"/", b"")):
                    found[place].append(name)
            going, parents = going[~is_top], parents[~is_top]
            dentry[going] = parents
        return [[printable(name, _NAME_BYTES) for name in reversed(one)] for one in found]

    def _names(self, dentries: npt.NDArray[np.uint64]) -> list[bytes]:
        """The last component of each path, or ? if it is renamed meanwhile: its memory may be another's by now."""
        pointers = self._read(dentries, "DENTRY_NAME")
        names = self._memory.texts(pointers, _NAME_BYTES)
        same = (self._read(dentries, "DENTRY_NAME") == pointers).tolist()
        return [name if is_same else b"?" for name, is_same in zip(names, same, strict=True)]

    def mount_points(self, super_blocks: npt.NDArray[np.uint64]) -> list[list[str] | None]:
        """Return the path of the mount of each file system's root, None for one that is not mounted."""
        if "HAS_MOUNTS" not in self._at:
            return [None for _ in super_blocks]
        mounts = self._mounts(super_blocks)
        roots = np.where(mounts != 0, self._read(super_blocks, "SUPER_BLOCK_ROOT"), np.uint64(0))
        paths = self.paths(roots, super_blocks)
        return [path if mount else None for path, mount in zip(paths, mounts.tolist(), strict=True)]

    def _cross_mounts(
        self, dentry: npt.NDArray[np.uint64], mounts: npt.NDArray[np.uint64], going: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Replace each dentry that is the root of its mount by the mount point; return those that have a parent."""
        for _ in range(_MAX_DEPTH if "HAS_MOUNTS" in self._at else 0):
            here = going[mounts[going] != 0]
            at_root = here[self._read(mounts[here], "MOUNT_ROOT") == dentry[here]]
            if not len(at_root):
                break
            parents = self._read(mounts[at_root], "MOUNT_PARENT")
            is_last = (parents == mounts[at_root]) | (parents == 0)
            going = going[~np.isin(going, at_root[is_last])]
            crossing = at_root[~is_last]
            dentry[crossing] = self._read(mounts[crossing], "MOUNT_POINT")
            mounts[crossing] = parents[~is_last]
        return going

    def _mounts(self, super_blocks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The mount of the root of each of these file systems; 0 for none."""
        if "HAS_MOUNTS" not in self._at:
            return np.zeros(len(super_blocks), "<u8")
        new = [one for one in set(super_blocks.tolist()) if one and one not in self._mount_of]
        if new:
            chosen = self._choose_mounts(np.array(new, "<u8"))
            self._mount_of |= dict(zip(new, chosen.tolist(), strict=True))
        return np.array([self._mount_of.get(one, 0) for one in super_blocks.tolist()], "<u8")

    def _choose_mounts(self, super_blocks: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Of the mounts of a file system's root, one of the first process, else the oldest one."""
        at = self._at
        latest_first = "LATEST_MOUNT_FIRST" in at
        heads = super_blocks + np.uint64(at["SUPER_BLOCK_MOUNTS"])
        roots = self._read(super_blocks, "SUPER_BLOCK_ROOT")
        chosen, is_first_process = np.zeros(len(heads), "<u8"), np.zeros(len(heads), np.bool_)
        going = np.arange(len(heads))
        links = self._memory.peek(heads)
        for _ in range(_MAX_MOUNTS):
            more = (links != 0) & (links != heads[going])
            going, links = going[more], links[more]
            if not len(going):
                break
            mounts = links if latest_first else links - np.uint64(at["MOUNT_NEXT"])
            is_first = self._read(mounts, "MOUNT_NAMESPACE") == np.uint64(self._first_namespace)
            better = (chosen[going] == 0) | latest_first
            better = np.where(is_first == is_first_process[going], better, is_first)
            better &= self._read(mounts, "MOUNT_ROOT") == roots[going]
            chosen[going[better]] = mounts[better]
            is_first_process[going[better]] = is_first[better]
            links = self._memory.peek(mounts + np.uint64(at["MOUNT_NEXT"]))
        return chosen

    def _mounts_of_first_process(self) -> int:
        """The mount namespace of the node's first process, an ancestor of every process; 0 if not found."""
        at, task = self._at, self._memory.current_task()
        for _ in range(_MAX_DEPTH):
            parent = self._memory.word(task + at["TASK_PARENT"])
            grandparent = self._memory.word(parent + at["TASK_PARENT"])
            if grandparent == parent:  # the idle task, which is its own parent
                break
            task = parent
        return self._memory.word(self._memory.word(task + at["TASK_NAMESPACES"]) + at["NAMESPACES_MOUNTS"])

    def _read(self, addresses: npt.NDArray[np.uint64], name: str) -> npt.NDArray[np.uint64]:
        return self._memory.peek(addresses + np.uint64(self._at[name]))
