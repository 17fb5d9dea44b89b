"""Every memory cgroup of the node, and its container, read from the kernel's own tree.

The file system shows the tree only to a process with the host's cgroup namespace and mounts, which a runner pod lacks.
A removed cgroup stays in the tree until nothing is charged to it (kernel: kernel/cgroup/cgroup.c, css_release_work_fn).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.cgroup_layout import CGROUP_FIELDS, memory_state_offset_bytes
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.cgroup import ContainerIdentity, parse_cgroup

_MAX_DEPTH = 64
_MAX_GROUPS = 1 << 16
_NAME_BYTES = 160  # a container's name has 85 bytes: cri-containerd-<64 digits>.scope
_FIELDS: tuple[Field, ...] = (
    ("CSS_PARENT", "cgroup_subsys_state", "parent"),
    ("CSS_CHILDREN", "cgroup_subsys_state", "children"),
    ("CSS_SIBLING", "cgroup_subsys_state", "sibling"),
    ("CSS_FLAGS", "cgroup_subsys_state", "flags"),
)
_ONLINE, _DYING = "CSS_ONLINE", "CSS_DYING"  # a removed one is dying at once, and not online some time later


@dataclass(frozen=True, slots=True)
class MemoryCgroup:
    """One memory cgroup. Its parent is earlier in the list that it comes from."""

    address: int
    """Of its cgroup_subsys_state: a key, never published."""
    parent: int
    """Index of its parent in the list; -1 for the root."""
    inode: int
    path: bytes
    identity: ContainerIdentity
    is_removed: bool = False


def memory_cgroup_layout(btf: Btf) -> dict[str, int]:
    """The offsets of the tree in the kernel's structures; empty on a kernel without memory cgroups."""
    if not btf.has_struct("mem_cgroup") or not all(map(btf.has_enumerator, (_ONLINE, _DYING))):
        return {}
    layout = optional_offsets(btf, "HAS_MEMORY_CGROUPS", (*CGROUP_FIELDS, *_FIELDS))
    if not layout:
        return {}
    flags = {name: btf.enum_value(name) for name in (_ONLINE, _DYING)}
    return layout | flags | {"CSS_SET_MEMORY": memory_state_offset_bytes(btf)}


def memory_cgroups(memory: KernelMemory, at: Mapping[str, int]) -> list[MemoryCgroup]:
    """Every memory cgroup, the root first, at most some 65,536; empty if this kernel has none.

    `at` is the result of `memory_cgroup_layout`, taken beforehand so that the BTF need not stay in memory.
    """
    if "HAS_MEMORY_CGROUPS" not in at:
        return []
    root = _root(memory, at)
    found = [MemoryCgroup(root, -1, 0, b"", ContainerIdentity("", ""))]
    numbers = {root: 0}
    level = np.array([root], "<u8")
    for _ in range(_MAX_DEPTH):
        level = list_entries(memory, level + np.uint64(at["CSS_CHILDREN"])) - np.uint64(at["CSS_SIBLING"])
        parents = memory.peek(level + np.uint64(at["CSS_PARENT"]))
        known = np.isin(parents, np.fromiter(numbers, "<u8"))  # false for the head of a list that changed meanwhile
        level, parents = level[known], parents[known]
        if not len(level) or len(found) > _MAX_GROUPS:
            break
        nodes = memory.peek(memory.peek(level + np.uint64(at["CSS_CGROUP"])) + np.uint64(at["CGROUP_NODE"]))
        inodes = memory.peek(nodes + np.uint64(at["NODE_ID"]))
        names = memory.texts(memory.peek(nodes + np.uint64(at["NODE_NAME"])), _NAME_BYTES)
        flags = memory.peek(level + np.uint64(at["CSS_FLAGS"]))
        for group, parent, inode, name, flag in zip(
            level.tolist(), parents.tolist(), inodes.tolist(), names, flags.tolist(), strict=True
        ):
            above = numbers[parent]
            path = found[above].path + b"/" + name.replace(b"\n", b"?")
            numbers[group] = len(found)
            identity = parse_cgroup(b"0::" + path)
            is_removed = flag & (at[_ONLINE] | at[_DYING]) != at[_ONLINE]
            found.append(MemoryCgroup(group, above, inode, path, identity, is_removed=is_removed))
    return found


def containers_of(groups: Sequence[MemoryCgroup]) -> dict[int, ContainerIdentity]:
    """The container of each memory cgroup that is a container or inside one, by the cgroup's inode."""
    return {one.inode: one.identity for one in groups if one.identity.container_id or one.identity.pod_uid}


def container_cgroups(memory: KernelMemory, at: Mapping[str, int]) -> dict[int, ContainerIdentity]:
    """As `containers_of` of all memory cgroups."""
    return containers_of(memory_cgroups(memory, at))


def _root(memory: KernelMemory, at: Mapping[str, int]) -> int:
    """The root of the memory cgroups (its cgroup_subsys_state), reached from this process's own cgroup."""
    group = memory.word(memory.word(memory.current_task() + at["TASK_CGROUPS"]) + at["CSS_SET_MEMORY"])
    for _ in range(_MAX_DEPTH):
        parent = memory.word(group + at["CSS_PARENT"])
        if not parent:
            break
        group = parent
    return group
