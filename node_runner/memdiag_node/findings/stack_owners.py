"""Who has the memory of a call stack, as far as its functions and processes show it (pure)."""

import re

from memdiag_api import limits
from memdiag_api.evidence import AllocatingProcess, Stack
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_api.process_name import shown_process
from memdiag_node.findings.vmalloc import is_bpf
from memdiag_node.kernel.symbols import function_name
from memdiag_node.trace.stacks import first_name

BPF_OWNER = "BPF"
_RECLAIMED = re.compile(
    r"xfs_buf_\w+|_xfs_buf_\w+|abd_alloc\w*|zio_(data_)?buf_alloc|arc_\w+|ttm_pool_\w+|bch2_btree_\w+|"
    r"btrfs_alloc_page_array"
)
"""Private caches of the kernel, which their shrinkers give back: XFS and bcachefs buffers, ZFS ARC, TTM's pool."""
_OF_CGROUPS = re.compile(r"mem_cgroup_css_alloc|mem_cgroup_alloc|cgroup_mkdir|cgroup_rstat_init|css_rstat_init")
_OF_PROCESSES = (ClassName.KERNEL_STACK, ClassName.PAGE_TABLES)
_BY_SETUP = (ClassName.VMALLOC, ClassName.PERCPU)


def is_reclaimed_cache(stack: Stack) -> bool:
    """Return whether the stack fills a cache of the kernel that is given back under pressure."""
    return passes(stack, _RECLAIMED)


def passes(stack: Stack, functions: re.Pattern[str]) -> bool:
    """Return whether a frame of the stack is in one of these functions."""
    return any(functions.fullmatch(function_name(frame)) for frame in stack.frames)


def stack_owner(stack: Stack) -> MemoryOwner:
    """Return the owner of the memory of a stack, with the process and container that allocated most of it.

    Vmalloc and per-CPU memory belong to what was set up: BPF, memory cgroups, or a module. Kernel stacks and page
    tables belong to the process. Otherwise it is the stack.
    """
    process = stack.processes[0] if stack.processes else None
    if process and stack.memory_class in _OF_PROCESSES:
        return process_owner(process)
    kind, name = _set_up(stack) or (OwnerKind.CALL_STACK, first_name(stack.frames) or "")
    return MemoryOwner(
        kind=kind,
        name=name[: limits.MAX_SHORT_TEXT],
        pid=process.pid if process else 0,
        comm=process.comm if process else "",
        container_id=process.container_id if process else "",
        pod_uid=process.pod_uid if process else "",
    )


def process_owner(process: AllocatingProcess) -> MemoryOwner:
    """Return a process as an owner, as it was when it allocated."""
    return MemoryOwner(
        kind=OwnerKind.PROCESS,
        name=shown_process(process.comm, process.pid)[: limits.MAX_SHORT_TEXT],
        pid=process.pid,
        comm=process.comm,
        processes=1,
        container_id=process.container_id,
        pod_uid=process.pod_uid,
    )


def _set_up(stack: Stack) -> tuple[OwnerKind, str] | None:
    if stack.memory_class not in _BY_SETUP:
        return None
    names = [function_name(frame) for frame in stack.frames]
    if any(is_bpf(name) for name in names):
        return OwnerKind.KERNEL, BPF_OWNER
    if passes(stack, _OF_CGROUPS):
        return OwnerKind.KERNEL, "memory cgroups"
    in_module = next((frame for frame in stack.frames if frame.endswith("]") and " [" in frame), None)
    if in_module is None:
        return None
    return OwnerKind.MODULE, f"{function_name(in_module)} [{in_module.rpartition(' [')[2]}"
