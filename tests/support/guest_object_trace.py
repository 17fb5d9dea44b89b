"""Plants slab objects and per-CPU memory while the object trace runs, and returns what it found.

A step of guests whose kernel or options no other test boots: it uses the library of the node runner directly.
"""

import ctypes
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from memdiag_api.memory_classes import ClassName
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import open_memory
from memdiag_node.procfs.kpageflags import FrameTable
from memdiag_node.procfs.memory_map import read_memory_map
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import SlabLookup
from memdiag_node.trace.objects.decode import decode_objects
from memdiag_node.trace.objects.object_trace import ObjectTrace
from memdiag_node.trace.settings import TraceSettings

PLANTED_FILES, FREED_FILES, MOUNTS = 20_000, 5_000, 100


@contextmanager
def mounted_tmpfs() -> Iterator[None]:
    """A file system of its own: each has per-CPU counters."""
    libc = ctypes.CDLL(None, use_errno=True)
    with tempfile.TemporaryDirectory() as folder:
        if libc.mount(b"none", folder.encode(), b"tmpfs", 0, None):
            raise OSError(ctypes.get_errno(), f"mount {folder}")
        try:
            yield
        finally:
            libc.umount(folder.encode())


def object_trace() -> dict[str, Any]:
    """The stacks of eventfds' file structs and of mounts' per-CPU memory, and how many were planted."""
    roots = HostRoots()
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * PLANTED_FILES, 2 * PLANTED_FILES))
    with ExitStack() as opened:
        at = object_layout(Btf.load(roots.sys))
        lookup = SlabLookup(
            open_memory(at, opened),
            at,
            ranges=read_memory_map(roots.proc, roots.sys, page_bytes=resource.getpagesize()),
            read_flags=opened.enter_context(FrameTable(Path("/proc/kpageflags"))).read,
            cpus=sorted(os.sched_getaffinity(0)),
        )
        # Without a budget: an emulated CPU is slow, and nothing is to be thinned out.
        trace = opened.enter_context(ObjectTrace(TraceSettings(duration_seconds=60, cpu_budget_share=0), roots=roots))
        trace.start()
        fds = []
        for number in range(PLANTED_FILES):
            fds.append(os.eventfd(0))
            if number % 1000 == 0:
                trace.advance()
        for fd in fds[:FREED_FILES]:
            os.close(fd)
        for _ in range(MOUNTS):
            opened.enter_context(mounted_tmpfs())
        raw = trace.read_out()
        result = decode_objects(raw, lookup.objects(raw.slab_addresses()), possible_cpus=os.cpu_count() or 1)
    files = [
        stack
        for stack in result.stacks
        if stack.slab_cache == "filp" and any("eventfd" in frame for frame in stack.frames)
    ]
    percpu = [stack for stack in result.stacks if stack.memory_class == ClassName.PERCPU]
    return {
        "kinds": [kind.name for kind in raw.kinds],
        "planted_files": PLANTED_FILES - FREED_FILES,
        "files": sum(stack.outstanding_blocks for stack in files),
        "error_files": sum(stack.error_bytes / stack.outstanding_bytes * stack.outstanding_blocks for stack in files),
        "processes": sorted({process.pid == os.getpid() for stack in files for process in stack.processes}),
        "mounts": MOUNTS,
        "percpu_allocations": sum(
            stack.outstanding_blocks for stack in percpu if any("mount" in frame for frame in stack.frames)
        ),
        "percpu_bytes": sum(stack.outstanding_bytes for stack in percpu),
        "lost_objects": result.lost_objects,
    }
