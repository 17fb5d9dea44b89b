"""The loaded modules of the kernel and the memory of each, so that a pointer into one names it without a symbol.

/proc/modules shows the addresses only to CAP_SYSLOG. Every loaded module has a directory in sysfs, whose inode leads to
its struct module (kernel/params.c, struct module_kobject), and from one of them the list leads to all others.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable

_NAME_BYTES = 56  # include/linux/module.h, MODULE_NAME_LEN
_MAX_PARTS = 16
_MAX_MODULES = 4096
_MAX_BYTES = 1 << 30
_U32 = 0xFFFFFFFF
_FIELDS: tuple[Field, ...] = (
    ("FILE_INODE", "file", "f_inode"),
    ("INODE_NODE", "inode", "i_private"),
    ("NODE_OBJECT", "kernfs_node", "priv"),
    ("OBJECT_OF_MODULE", "module_kobject", "kobj"),
    ("OBJECT_MODULE", "module_kobject", "mod"),
    ("MODULE_NAME", "module", "name"),
    ("MODULE_LIST", "module", "list"),
)


@dataclass(frozen=True, slots=True)
class ModuleMap:
    """Address ranges of modules, ascending and not overlapping."""

    names: tuple[str, ...]
    starts: npt.NDArray[np.uint64]
    ends: npt.NDArray[np.uint64]

    def module_of(self, address: int) -> str:
        """The name of the module whose code or data is at the address; empty for none."""
        number = int(np.searchsorted(self.starts, np.uint64(address), side="right")) - 1
        return self.names[number] if number >= 0 and address < int(self.ends[number]) else ""


NO_MODULES = ModuleMap((), np.empty(0, "<u8"), np.empty(0, "<u8"))


def module_layout(btf: Btf) -> dict[str, int]:
    """The offsets that `read_modules` needs; empty if this kernel has no modules."""
    found = optional_offsets(btf, "HAS_MODULES", _FIELDS)
    if not found:
        return {}
    if btf.has_field("module", "mem") and btf.has_enumerator("MOD_MEM_NUM_TYPES"):  # Linux 6.4
        return found | {
            "PARTS": min(_MAX_PARTS, btf.enum_value("MOD_MEM_NUM_TYPES")),
            "PARTS_START": btf.offset_bytes("module", "mem"),
            "PART_STRIDE": btf.size_bytes("module_memory"),
            "PART_BASE": btf.offset_bytes("module_memory", "base"),
            "PART_SIZE": btf.offset_bytes("module_memory", "size"),
        }
    if btf.has_field("module", "core_layout"):
        return found | {
            "PARTS": 1,
            "PARTS_START": btf.offset_bytes("module", "core_layout"),
            "PART_STRIDE": btf.size_bytes("module_layout"),
            "PART_BASE": btf.offset_bytes("module_layout", "base"),
            "PART_SIZE": btf.offset_bytes("module_layout", "size"),
        }
    return {}


def read_modules(memory: KernelMemory, at: Mapping[str, int], sys_root: Path) -> ModuleMap:
    """The memory of all loaded modules. `at` is the result of `module_layout`. Empty if sysfs does not show any."""
    first = _any_module(memory, at, sys_root / "module") if "HAS_MODULES" in at else 0
    if not first:
        return NO_MODULES
    modules = list_entries(memory, np.array([first + at["MODULE_LIST"]], "<u8"))[:_MAX_MODULES]
    # The head of the list is among the entries. What looks like a name there is not the name of a directory.
    modules = np.union1d(modules - np.uint64(at["MODULE_LIST"]), np.array([first], "<u8"))
    names = [printable(name, _NAME_BYTES) for name in memory.texts(modules + np.uint64(at["MODULE_NAME"]), _NAME_BYTES)]
    is_real = np.array([bool(name) and "/" not in name and (sys_root / "module" / name).is_dir() for name in names])
    offsets = at["PARTS_START"] + np.arange(at["PARTS"], dtype="<u8") * np.uint64(at["PART_STRIDE"])
    parts = modules[:, np.newaxis] + offsets.astype("<u8")
    bases = memory.peek((parts + np.uint64(at["PART_BASE"])).reshape(-1))
    sizes = memory.peek((parts + np.uint64(at["PART_SIZE"])).reshape(-1)) & np.uint64(_U32)
    used = (bases != 0) & (sizes != 0) & (sizes <= _MAX_BYTES) & np.repeat(is_real, at["PARTS"])
    numbers = np.repeat(np.arange(len(names)), at["PARTS"])[used]
    bases, ends = bases[used], bases[used] + sizes[used]
    order = np.argsort(bases)
    return ModuleMap(tuple(names[number] for number in numbers[order].tolist()), bases[order], ends[order])


def _any_module(memory: KernelMemory, at: Mapping[str, int], directory: Path) -> int:
    """Address of the struct module of any loaded module; 0 if there is none."""
    try:
        # Code that is built in has a directory too, but only a loaded module has a state.
        candidates = sorted(state.parent for state in directory.glob("*/initstate"))
    except OSError:
        return 0
    for path in candidates[:_MAX_PARTS]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # removed meanwhile
        try:
            inode = memory.word(memory.file(fd) + at["FILE_INODE"])
        finally:
            os.close(fd)
        node = memory.word(inode + at["INODE_NODE"])
        kobject = memory.word(node + at["NODE_OBJECT"])
        module = memory.word(kobject - at["OBJECT_OF_MODULE"] + at["OBJECT_MODULE"]) if kobject else 0
        if (
            module
            and memory.texts(np.array([module + at["MODULE_NAME"]], "<u8"), _NAME_BYTES)[0].decode(errors="replace")
            == path.name
        ):
            return module
    return 0
