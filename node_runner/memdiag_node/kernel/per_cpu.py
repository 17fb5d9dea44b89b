"""How far each CPU's copy of a per-CPU object is from the pointer that the kernel keeps (include/linux/percpu-defs.h).

The kernel's own table, `__per_cpu_offset`, is a data symbol, which many kernels do not list. So a program runs once on
each CPU and records the address of that CPU's copy of one object: an array map of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import KernelMemory

_SOURCE = Path(__file__).with_suffix(".bpf.c")
_PLACE = np.dtype("<u8")
PER_CPU_MAPS = {"places": _PLACE}
"""The maps of per_cpu.bpf.h, as read here."""
# The union that holds a map's values is in `struct bpf_array`, which is named `pptrs` where they are per CPU.
_FIELDS: tuple[Field, ...] = (("ARRAY_PER_CPU", "bpf_array", "pptrs"),)


def per_cpu_layout(btf: Btf) -> dict[str, int]:
    """The offsets that `per_cpu_offsets` needs; empty on a kernel with another layout."""
    return optional_offsets(btf, "HAS_PER_CPU_ARRAY", _FIELDS)


def per_cpu_offsets(memory: KernelMemory, at: Mapping[str, int], cpus: Sequence[int]) -> npt.NDArray[np.uint64]:
    """What to add, modulo 2**64, to a per-CPU pointer to get the copy of each of these online CPUs.

    `at` has what `per_cpu_layout` and `memory_layout` return. Raises BpfError if the kernel refuses it; a CPU that went
    offline meanwhile is left out.
    """
    with BpfObject(_SOURCE, per_cpu_defines(cpus), PER_CPU_MAPS) as bpf:
        return locate_copies(bpf, memory, at, cpus)


def per_cpu_defines(cpus: Sequence[int]) -> dict[str, int]:
    """The defines of per_cpu.bpf.h for these CPUs."""
    return {"CPUS": max(cpus) + 1}


def locate_copies(
    bpf: BpfObject, memory: KernelMemory, at: Mapping[str, int], cpus: Sequence[int]
) -> npt.NDArray[np.uint64]:
    """Like `per_cpu_offsets`, with programs that are loaded: their source includes per_cpu.bpf.h."""
    if "HAS_PER_CPU_ARRAY" not in at:
        raise BpfError("this kernel's per-CPU array maps have an unknown layout")
    program = bpf.runnable("locate")
    for cpu in cpus:
        program.run_on(cpu)
    places = np.array(bpf.view("places", _PLACE, max(cpus) + 1))
    array = memory.word(memory.file(bpf.map_fd("anchor")) + at["FILE_PRIVATE"])
    pointer = memory.word(array + at["ARRAY_PER_CPU"])
    found = places[list(cpus)]
    distances: npt.NDArray[np.uint64] = found[found != 0] - np.uint64(pointer)
    return distances
