"""The user-space side of identity.bpf.h: the kernel's layouts that it needs, and the names of stacks."""

from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.cgroup_layout import CGROUP_FIELDS, memory_state_offset_bytes
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.layout import offsets
from memdiag_node.kernel.symbols import SymbolReader
from memdiag_node.procfs.cgroup import ContainerIdentity, parse_cgroup


def identity_layout(btf: Btf) -> dict[str, int]:
    """The offsets of identity.bpf.h in this kernel."""
    parent = "parent" if btf.has_field("kernfs_node", "parent") else "__parent"  # renamed in Linux 6.15
    return {
        "TASK_GROUP_LEADER": btf.offset_bytes("task_struct", "group_leader"),
        "TASK_COMM": btf.offset_bytes("task_struct", "comm"),
        **offsets(btf, CGROUP_FIELDS),
        "CSS_SET_MEMORY": memory_state_offset_bytes(btf),
        "NODE_PARENT": btf.offset_bytes("kernfs_node", parent),
    }


def open_symbol_reader(parts: ExitStack) -> SymbolReader | None:
    """None if the kernel refuses the program: then stacks have no names, but their bytes are still correct."""
    try:
        return parts.enter_context(SymbolReader())
    except BpfError:
        return None


def path_identity(names: npt.NDArray[np.bytes_]) -> ContainerIdentity:
    """The container of a cgroup, from the names on its path, innermost first."""
    path = b"/".join(bytes(name) for name in reversed(names.tolist()) if name)
    return parse_cgroup(b"0::/" + path.replace(b"\n", b"?"))
