"""The programs of floor.bpf.c: what the tracepoints of every slab object cost, whatever a program does at them."""

import sys
from pathlib import Path

from memdiag_node.kernel.loader import BpfObject

_PROGRAMS = {
    "kfree": "on_kfree",
    "kmem_cache_free": "on_cache_free",
    "kmalloc": "on_kmalloc",
    "kmem_cache_alloc": "on_cache_alloc",
}

with BpfObject(Path(__file__).with_suffix(".bpf.c"), {}) as bpf:
    for tracepoint, function in _PROGRAMS.items():
        bpf.attach_raw_tracepoint(tracepoint, function)
    print("tracing", flush=True)
    sys.stdin.readline()
