"""Which processes have one address space, and which are forks of each other, from the kernel's tasks.

A fork inherits the random places of stack and mappings that its ancestor's last exec chose. So processes with the same
places can share anonymous memory, and others cannot, except by KSM. Without address space randomization unrelated
processes have the same places: they are then treated as if they could share.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

_MAX_PID = 1 << 22
_FIELDS: tuple[Field, ...] = (
    ("TASK_TGID", "task_struct", "tgid"),
    ("TASK_MEMORY", "task_struct", "mm"),
    ("TASK_FLAGS", "task_struct", "flags"),
    ("MM_STACK_START", "mm_struct", "start_stack"),
    ("MM_MAP_BASE", "mm_struct", "mmap_base"),
)
_PF_KTHREAD = 0x00200000  # a thread of the kernel may use the address space of a process for a moment


@dataclass(frozen=True, slots=True)
class AddressSpace:
    """The address space of a process."""

    address: int
    """Of its struct mm_struct: processes with the same one have all memory in common (CLONE_VM)."""
    layout: tuple[int, int]
    """Start of the stack, base of the mappings: the same in all forks."""


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_address_spaces` needs; empty if this kernel lacks one of them."""
    return optional_offsets(btf, "HAS_ADDRESS_SPACES", _FIELDS)


def read_address_spaces(census: SlabCensus, at: Mapping[str, int]) -> dict[int, AddressSpace]:
    """Return the address space of each process, by pid; empty if this kernel lacks a field."""
    spaces: dict[int, AddressSpace] = {}
    for cache in census.named("task_struct") if "HAS_ADDRESS_SPACES" in at else ():
        tasks = census.objects(cache)
        pids = census.read(tasks, at["TASK_TGID"], 4)
        memory = census.read(tasks, at["TASK_MEMORY"])
        is_kernel = (census.read(tasks, at["TASK_FLAGS"], 4) & np.uint64(_PF_KTHREAD)) != 0
        good = census.still_allocated(cache, tasks) & (pids <= _MAX_PID) & (memory != 0) & ~is_kernel
        pids, memory = pids[good], memory[good]
        stacks, bases = census.read(memory, at["MM_STACK_START"]), census.read(memory, at["MM_MAP_BASE"])
        for pid, address, stack, base in zip(
            pids.tolist(), memory.tolist(), stacks.tolist(), bases.tolist(), strict=True
        ):
            spaces[pid] = AddressSpace(address, (stack, base))
    return spaces
