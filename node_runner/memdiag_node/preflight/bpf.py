"""Kernel features and privileges that the eBPF checks need, found by trying (bpf(2), capabilities(7))."""

import ctypes
import errno
import os
import platform

from memdiag_api.capabilities import in_words
from memdiag_api.evidence import Check, Need
from memdiag_node.cgroups.layout import account_layout
from memdiag_node.kernel.btf import Btf, BtfError
from memdiag_node.kernel.compiler import has_bcc
from memdiag_node.preflight.need import degraded, met, missing, why_unreadable
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.layout import object_layout

_TRACE = (Check.ALLOC_PAGE_TRACE,)
_SOCKETS = (Check.SOCKET_QUEUES,)
_OBJECTS = (Check.KERNEL_OBJECTS,)
_CONTAINERS = (Check.CONTAINERS,)
_ALL = (*_TRACE, *_SOCKETS, *_OBJECTS, *_CONTAINERS)
_FRAMES = (Check.BREAKDOWN, Check.OWNERS, *_TRACE)

_BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
_BPF_PROG_LOAD = 5
_BPF_PROG_TYPE_RAW_TRACEPOINT = 17
# r0 = 0; exit
_RETURN_ZERO = bytes.fromhex("b7000000000000009500000000000000")
# bpf_probe_read_kernel(r10 - 8, 8, 0), then the same.
_READ_KERNEL = (
    bytes.fromhex("bfa100000000000007010000f8ffffffb702000008000000b7030000000000008500000071000000") + _RETURN_ZERO
)

# include/linux/proc_ns.h: PROC_PID_INIT_INO.
_HOST_PID_NAMESPACE = 0xEFFFFFFC

_CAPABILITIES = f"run as root with the capabilities {in_words()}"


def needs(roots: HostRoots) -> list[Need]:
    """Return the needs of the checks that use eBPF, in the order in which to fix them."""
    return [
        _bcc(),
        *_btf(roots),
        _programs(),
        *_kpageflags(roots),
        _kpagecgroup(roots),
        _host_pids(roots),
    ]


def _bcc() -> Need:
    if has_bcc():
        return met("bcc", _ALL)
    return missing(
        "bcc",
        _ALL,
        "The Python module bcc cannot be imported.",
        "Install the package of the distribution: python3-bpfcc on Debian and Ubuntu (bcc on PyPI is another project).",
    )


def _btf(roots: HostRoots) -> list[Need]:
    path = roots.sys / "kernel/btf/vmlinux"
    try:
        btf = Btf.load(roots.sys)
    except (OSError, BtfError) as error:
        reason = f"{path}: {error.strerror or error}." if isinstance(error, OSError) else f"{error}."
        return [missing("BTF", _ALL, reason, "Boot a kernel built with CONFIG_DEBUG_INFO_BTF.")]
    return [met("BTF", _ALL), _iterators(btf), _slab_allocator(btf), _cgroups(btf), _symbols(roots, btf)]


def _iterators(btf: Btf) -> Need:
    """Check for the iterator over all files (Linux 5.8) and the helper that returns the socket of a file (5.11)."""
    lacks = ""
    if not btf.has_struct("bpf_iter__task_file"):
        lacks = "cannot list the files of all tasks"
    elif not btf.has_enumerator("BPF_FUNC_sock_from_file"):
        lacks = "does not let BPF iterators get the socket of a file (bpf_sock_from_file)"
    if lacks:
        return missing("BPF iterators", _SOCKETS, f"The kernel {lacks}.", "Boot Linux 5.11 or later.")
    return met("BPF iterators", _SOCKETS)


def _slab_allocator(btf: Btf) -> Need:
    if object_layout(btf):
        return met("SLUB", _OBJECTS)
    return missing(
        "SLUB",
        _OBJECTS,
        "The kernel has another slab allocator than SLUB, or one with an unknown layout. Its objects are not read.",
        "Boot a kernel built with CONFIG_SLUB, the only allocator since Linux 6.8.",
    )


def _cgroups(btf: Btf) -> Need:
    if "HAS_MEMORY_ACCOUNTS" in account_layout(btf):
        return met("memory cgroups", _CONTAINERS)
    return missing(
        "memory cgroups",
        _CONTAINERS,
        "The kernel has no memory cgroups, or counts them in an unknown way.",
        "Boot a kernel built with CONFIG_MEMCG.",
    )


def _programs() -> Need:
    """Load minimal programs of the type that the trace uses, and close them at once."""
    code = load_program(_RETURN_ZERO)
    if code == 0:
        return _reading_programs()
    if code == errno.EPERM:
        remedy = f"In a pod or container, the seccomp profile must allow bpf(2). Otherwise, {_CAPABILITIES}."
    elif code == errno.ENOSYS:
        remedy = "Boot a kernel built with CONFIG_BPF_SYSCALL."
    else:
        remedy = "Boot Linux 5.8 or later."
    return missing("eBPF programs", _ALL, f"The kernel does not load a program: {os.strerror(code)}.", remedy)


def _reading_programs() -> Need:
    """Check whether programs may read kernel memory: if not, the verifier rejects the helper function."""
    code = load_program(_READ_KERNEL)
    if code == 0:
        return met("eBPF programs", _ALL)
    return missing(
        "eBPF programs",
        _ALL,
        f"The kernel does not load a program that reads kernel memory: {os.strerror(code)}.",
        "If the kernel is locked down for confidentiality, which forbids this (kernel_lockdown(7)), boot it with "
        "lockdown=integrity or none. Otherwise, boot Linux 5.8 or later.",
    )


def load_program(code: bytes) -> int:
    """Load a raw tracepoint program of these instructions. Return 0 or the error number. It is never attached."""
    number = _BPF_SYSCALL.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = (ctypes.c_uint64 * 16)()  # union bpf_attr, BPF_PROG_LOAD: two u32, then the pointers
    attributes[0] = _BPF_PROG_TYPE_RAW_TRACEPOINT | (len(code) // 8) << 32
    attributes[1] = ctypes.addressof(instructions)
    attributes[2] = ctypes.addressof(license_text)
    libc = ctypes.CDLL(None, use_errno=True)
    program_fd = libc.syscall(number, _BPF_PROG_LOAD, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if program_fd < 0:
        return ctypes.get_errno()
    os.close(program_fd)
    return 0


def _symbols(roots: HostRoots, btf: Btf) -> Need:
    """Check the symbol table. An iterator reads it, so kernel.kptr_restrict does not matter."""
    if not (roots.proc / "kallsyms").exists():
        detail, remedy = "The kernel has no symbol table.", "Boot a kernel built with CONFIG_KALLSYMS."
    elif not btf.has_struct("bpf_iter__bpf_map"):
        detail, remedy = "The kernel has no BPF iterators, which read its symbol table.", "Boot Linux 5.9 or later."
    else:
        return met("kernel symbols", _TRACE)
    effect = "Call stacks have no function names, no context and no processes, and stacks of vmalloc and per-CPU "
    effect += "memory count as allocpage."
    return degraded("kernel symbols", _TRACE, f"{detail} {effect}", remedy)


def _kpageflags(roots: HostRoots) -> list[Need]:
    path = roots.proc / "kpageflags"
    reason = why_unreadable(path)
    if reason is None:
        return [met("page flags", (*_FRAMES, *_OBJECTS))]
    remedy = "Run as root, on a kernel built with CONFIG_PROC_PAGE_MONITOR."
    return [
        degraded(
            "page flags",
            _FRAMES,
            f"{path}: {reason}. Outstanding blocks are not checked against the use of their frames, and page frames "
            "are not counted.",
            remedy,
        ),
        missing("slab frames", _OBJECTS, f"{path}: {reason}. The frames of slabs cannot be found.", remedy),
    ]


def _kpagecgroup(roots: HostRoots) -> Need:
    path = roots.proc / "kpagecgroup"
    reason = why_unreadable(path)
    if reason is None:
        return met("page charges", _FRAMES)
    return degraded(
        "page charges",
        _FRAMES,
        f"{path}: {reason}. The containers charged for kernel memory are not reported.",
        "Run as root, on a kernel built with CONFIG_PROC_PAGE_MONITOR and CONFIG_MEMCG.",
    )


def _host_pids(roots: HostRoots) -> Need:
    path = roots.proc / "self/ns/pid"
    try:
        namespace = path.stat().st_ino
    except OSError as error:
        return degraded("host PIDs", _ALL, f"{path}: {error.strerror}. Owners may stay unnamed.", "Mount /proc.")
    if namespace == _HOST_PID_NAMESPACE:
        return met("host PIDs", _ALL)
    return degraded(
        "host PIDs",
        _ALL,
        "The runner is in a separate PID namespace, so processes that own sockets and stacks cannot be named.",
        "Start it in the host's PID namespace (in a pod: hostPID).",
    )
