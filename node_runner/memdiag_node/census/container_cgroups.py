"""Every memory cgroup of the node, and its container, read from the kernel's own tree.

The file system shows the tree only to a process with the host's cgroup namespace and mounts, which a runner pod lacks.
"""

from collections.abc import Mapping

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
)


def memory_cgroup_layout(btf: Btf) -> dict[str, int]:
    """The offsets of the tree in the kernel's structures; empty on a kernel without memory cgroups."""
    if not btf.has_struct("mem_cgroup"):
        return {}
    layout = optional_offsets(btf, "HAS_MEMORY_CGROUPS", (*CGROUP_FIELDS, *_FIELDS))
    return layout | {"CSS_SET_MEMORY": memory_state_offset_bytes(btf)} if layout else {}


def container_cgroups(memory: KernelMemory, at: Mapping[str, int]) -> dict[int, ContainerIdentity]:
    """The container of each memory cgroup that is a container or inside one, by the cgroup's inode.

    `at` is the result of `memory_cgroup_layout`, taken beforehand so that the BTF need not stay in memory.
    """
    if "HAS_MEMORY_CGROUPS" not in at:
        return {}
    group = _root(memory, at)
    paths = {group: b""}
    level = np.array([group], "<u8")
    containers: dict[int, ContainerIdentity] = {}
    for _ in range(_MAX_DEPTH):
        level = list_entries(memory, level + np.uint64(at["CSS_CHILDREN"])) - np.uint64(at["CSS_SIBLING"])
        parents = memory.peek(level + np.uint64(at["CSS_PARENT"]))
        known = np.isin(parents, np.fromiter(paths, "<u8"))  # false for the head of a list that changed meanwhile
        level, parents = level[known], parents[known]
        if not len(level) or len(paths) > _MAX_GROUPS:
            break
        nodes = memory.peek(memory.peek(level + np.uint64(at["CSS_CGROUP"])) + np.uint64(at["CGROUP_NODE"]))
        inodes = memory.peek(nodes + np.uint64(at["NODE_ID"]))
        names = memory.texts(memory.peek(nodes + np.uint64(at["NODE_NAME"])), _NAME_BYTES)
        for group, parent, inode, name in zip(level.tolist(), parents.tolist(), inodes.tolist(), names, strict=True):
            paths[group] = paths[parent] + b"/" + name.replace(b"\n", b"?")
            identity = parse_cgroup(b"0::" + paths[group])
            if identity.container_id or identity.pod_uid:
                containers[inode] = identity
    return containers


def _root(memory: KernelMemory, at: Mapping[str, int]) -> int:
    """The root of the memory cgroups (its cgroup_subsys_state), reached from this process's own cgroup."""
    group = memory.word(memory.word(memory.current_task() + at["TASK_CGROUPS"]) + at["CSS_SET_MEMORY"])
    for _ in range(_MAX_DEPTH):
        parent = memory.word(group + at["CSS_PARENT"])
        if not parent:
            break
        group = parent
    return group
