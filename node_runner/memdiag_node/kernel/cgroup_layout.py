"""The way from a task to its memory cgroup and to the name of that cgroup, in the running kernel's structures."""

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field

CGROUP_FIELDS: tuple[Field, ...] = (
    ("TASK_CGROUPS", "task_struct", "cgroups"),
    ("CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
    ("CGROUP_NODE", "cgroup", "kn"),
    ("NODE_ID", "kernfs_node", "id"),
    ("NODE_NAME", "kernfs_node", "name"),
)


def memory_state_offset_bytes(btf: Btf) -> int:
    """The offset in a css_set of the pointer to the memory controller's state. Raises BtfError."""
    return btf.offset_bytes("css_set", "subsys") + 8 * btf.enum_value("memory_cgrp_id")
