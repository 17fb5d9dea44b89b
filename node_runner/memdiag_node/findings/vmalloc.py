"""Rule: vmalloc by the kernel function that allocated it, and the owners of the class (docs/machine.md)."""

import re
from collections.abc import Iterator

from memdiag_api import limits
from memdiag_api.evidence import HolderKind
from memdiag_api.findings import Confidence, FindingKind, FindingTrend, LeakAnswer
from memdiag_api.machine import VmallocCaller, VmallocCallers
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, ClassShare, MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.naming import THIS_RUN
from memdiag_node.findings.situation import Situation

_BPF = re.compile(
    r"_*bpf_.*|prealloc_init|(?:array|htab|trie|queue_stack|stack|dev|cpu|sock|sock_hash|xsk|bloom|ringbuf|arena"
    r"|array_of|reuseport_array|cgroup_storage)_map_(?:alloc|init).*|sock_hash_alloc|reuseport_array_alloc"
)
"""Functions that allocate memory of BPF maps and programs. These are holders too (BpfMap, BpfProgram)."""
_XDP = re.compile(r"xskq_create|xp_create_and_assign_umem|xdp_umem_.*")
_FIXED = {
    "alloc_large_system_hash": "hash tables that the kernel makes at boot, by the size of the memory",
    "pcpu_create_chunk": "the bookkeeping of per-CPU memory",
    "pcpu_mem_zalloc": "the bookkeeping of per-CPU memory",
    "load_module": "code and data of kernel modules",
    "layout_and_allocate": "code and data of kernel modules",
    "move_module": "code and data of kernel modules",
    "module_memory_alloc": "code and data of kernel modules",
    "execmem_vmalloc": "code of kernel modules and of BPF programs",
    "swap_cgroup_swapon": "the bookkeeping of swap, by its size",
    "__do_sys_swapon": "the bookkeeping of swap, by its size",
    "zram_meta_alloc": "the table of a zram device, by the size of its disk",
    "disksize_store": "the table of a zram device, by the size of its disk",
    "kvm_arch_alloc_memslot_metadata": "the bookkeeping of virtual machines, by their memory",
    "kvm_alloc_memslot_metadata": "the bookkeeping of virtual machines, by their memory",
    "nf_ct_alloc_hashtable": "the hash table of connection tracking, by its configured size",
    "xt_alloc_table_info": "iptables rules",
    "xt_counters_alloc": "iptables rules",
}
"""Functions whose memory has a size that follows from the machine or its configuration."""


def is_bpf(function: str) -> bool:
    """Return whether a function allocates memory of BPF maps or programs."""
    return _BPF.fullmatch(function) is not None


def vmalloc_callers(situation: Situation) -> Iterator[Draft]:
    """Yield a finding for each caller with the notable size.

    Memory of BPF is a finding of its own only as far as it exceeds the BPF maps and programs that were found: those are
    findings about holders. The maps of this run are in no finding.
    """
    machine = situation.measured.machine
    vmalloc = machine.vmalloc if machine else None
    if vmalloc is None:
        return
    own_bytes = situation.measured.own_bytes(ClassName.VMALLOC)
    held_bytes = {True: own_bytes, False: 0}  # by whether it is BPF, else AF_XDP
    for one in situation.measured.holders:
        if one.memory_class == ClassName.VMALLOC:
            held_bytes[one.kind is not HolderKind.XDP_SOCKET] += one.pinned_bytes
    bpf_bytes = sum(one.size_bytes for one in vmalloc.callers if is_bpf(one.function)) - held_bytes[True]
    if bpf_bytes >= situation.notable_bytes:
        yield _bpf_draft(situation, bpf_bytes)
    for caller in vmalloc.callers:
        if is_bpf(caller.function):
            continue
        rest_bytes = caller.size_bytes - (held_bytes[False] if _XDP.fullmatch(caller.function) else 0)
        if rest_bytes >= situation.notable_bytes:
            yield _draft(situation, vmalloc, caller, rest_bytes)


def _bpf_draft(situation: Situation, size_bytes: int) -> Draft:
    is_large = size_bytes >= situation.large_bytes
    return Draft(
        kind=FindingKind.LARGE_CLASS,
        memory_class=ClassName.VMALLOC,
        size_bytes=size_bytes,
        owner=MemoryOwner(kind=OwnerKind.KERNEL, name="BPF"),
        leak=LeakAnswer.UNKNOWN if is_large else LeakAnswer.NO,
        confidence=Confidence.MEDIUM,
        sentence=f"BPF has {format_bytes(size_bytes)} of vmalloc"
        f"{' beyond the maps and programs that were found' if situation.measured.coverage else ''}.",
        reasons=[_threshold(situation)],
        advice="List maps and programs with bpftool map and bpftool prog, on the node.",
        sections=["machine.vmalloc"],
        is_notable=True,
    )


def _draft(situation: Situation, vmalloc: VmallocCallers, caller: VmallocCaller, size_bytes: int) -> Draft:
    purpose = _FIXED.get(caller.function)
    is_unknown = purpose is None and size_bytes >= situation.large_bytes
    reasons = [_threshold(situation), f"it is in {caller.areas} areas"]
    if purpose:
        reasons.insert(0, f"this function allocates {purpose}")
    if not vmalloc.is_complete:
        reasons.append("not all areas were read: it can be more")
    return Draft(
        kind=FindingKind.LARGE_CLASS,
        memory_class=ClassName.VMALLOC,
        size_bytes=size_bytes,
        owner=caller_owner(caller),
        trend=_trend(situation, caller),
        leak=LeakAnswer.UNKNOWN if is_unknown else LeakAnswer.NO,
        confidence=Confidence.MEDIUM if is_unknown else Confidence.HIGH,
        sentence=f"{format_bytes(size_bytes)} of vmalloc were allocated by {caller_name(caller)}.",
        reasons=reasons,
        advice="Run it again later to see whether it grows. The function shows which part of the kernel uses it."
        if is_unknown
        else "",
        sections=["machine.vmalloc"],
        is_notable=True,
    )


def _threshold(situation: Situation) -> str:
    return (
        f"the threshold for vmalloc of a caller is {format_bytes(situation.notable_bytes)}; from "
        f"{format_bytes(situation.large_bytes)} on, it must be explained"
    )


def _trend(situation: Situation, caller: VmallocCaller) -> FindingTrend | None:
    seconds = situation.measured.window_seconds
    if caller.change_bytes is None or not seconds:
        return None
    return situation.trend(caller.change_bytes / seconds, 0, seconds)


def caller_name(caller: VmallocCaller) -> str:
    """Return `FUNCTION` or `FUNCTION [module]`."""
    name = caller.function or "an unknown function"
    return f"{name} [{caller.module}]" if caller.module else name


def caller_owner(caller: VmallocCaller) -> MemoryOwner:
    """Return the module of a caller, or the function itself if it is part of the kernel."""
    kind = OwnerKind.MODULE if caller.module else OwnerKind.KERNEL_CALLER
    return MemoryOwner(kind=kind, name=caller_name(caller)[: limits.MAX_SHORT_TEXT])


def vmalloc_owners(vmalloc: VmallocCallers, class_bytes: int, own_bytes: int = 0) -> ClassOwners:
    """Return the owners of the class Vmalloc, by caller. `class_bytes` is the size of the class in the breakdown.

    A caller that is not known explains nothing. `own_bytes`: BPF maps of this run, which are one owner. They are taken
    from the callers that allocate for BPF, the largest first: which of them allocated the maps is not known.
    """
    known = [one for one in vmalloc.callers if one.function]
    unlisted_bytes = vmalloc.read_bytes - sum(one.size_bytes for one in vmalloc.callers)
    explained_bytes = sum(one.size_bytes for one in known) + unlisted_bytes
    shares, left_bytes = [], own_bytes
    for one in known:
        part_bytes = min(one.size_bytes, left_bytes) if is_bpf(one.function) else 0
        left_bytes -= part_bytes
        change_bytes = one.change_bytes if one.change_bytes is None else one.change_bytes - part_bytes
        size_bytes = one.size_bytes - part_bytes
        if size_bytes:
            shares.append(ClassShare(owner=caller_owner(one), size_bytes=size_bytes, change_bytes=change_bytes))
    if taken_bytes := own_bytes - left_bytes:
        shares.append(ClassShare(owner=MemoryOwner(kind=OwnerKind.PROCESS, name=THIS_RUN), size_bytes=taken_bytes))
    shares.sort(key=lambda one: -one.size_bytes)
    return ClassOwners(
        memory_class=ClassName.VMALLOC,
        size_bytes=class_bytes,
        explained_bytes=min(class_bytes, explained_bytes),
        owners=shares[: limits.MAX_CLASS_OWNERS],
        owners_total=vmalloc.callers_total + len(shares) - len(known),
    )
