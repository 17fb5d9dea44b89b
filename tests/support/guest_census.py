"""In a guest: what a run of memdiag-node finds of planted loads. tests/vm/test_census.py compares the two.

A run takes long in an emulated guest, so there is only one, with every load at once: each has a network namespace, a
file or a process of its own. Objects of kmalloc are compared with slabinfo's from before.
"""

import json
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planted import files, held_by_fd, nfqueue, packets, protocols, psock
from planted.leaking_modules import leaked_objects, lost_packets
from planted.sockets.common import MIB, PAGE_BYTES
from support.guest_calls import BUILT
from support.guest_program import runner

LEAKED_OBJECTS = 400_000
_CHECKS = ("KernelObjects", "SocketQueues", "Breakdown", "Owners", "Containers")


def census() -> dict[str, Any]:
    """What is planted, slabinfo from before the objects of kmalloc were planted and from after the run, and the run."""
    with ExitStack() as kept:
        planted = {name: _planted(kept, name, load) for name, load in _loads().items()}
        before = _slabinfo()
        planted |= {name: _planted(kept, name, load) for name, load in _loads_of_kmalloc().items()}
        run = _run()
        return {"planted": planted, "before": before, "run": run, "after": _slabinfo()}


def _planted(kept: ExitStack, name: str, load: AbstractContextManager[Any]) -> dict[str, Any]:
    planted = asdict(kept.enter_context(load))
    print(f"  {name} is planted", flush=True)
    return planted


def _slabinfo() -> list[dict[str, Any]]:
    """Name, objects, bytes of each object and bytes of all slabs of each cache."""
    rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return [
        {
            "name": row[0],
            "objects": int(row[1]),
            "object_bytes": int(row[3]),
            "size_bytes": int(row[14]) * int(row[5]) * PAGE_BYTES,
        }
        for row in rows
    ]


def _loads() -> dict[str, AbstractContextManager[Any]]:
    return {
        "lost": lost_packets(BUILT, 5_000, order=1),
        "nfqueue": nfqueue.nfqueue(packets=500),
        "sctp": protocols.sctp_backlog(messages=5_000),
        "ktls": protocols.ktls_backlog(),
        "fragments": packets.first_fragments(packets=500),
        "zombie": packets.qdisc_backlog(packets=1_000),
        "neighbour": packets.neighbour_queue(packets=500),
        "slab_heads": held_by_fd.slab_heads(datagrams=20_000),
        "tun": held_by_fd.tun_queue(packets=500),
        "sockmap": psock.sockmap_backlog(),
        "trace_buffer": held_by_fd.ftrace_buffer(16 * MIB),
        "io_uring": held_by_fd.io_uring_rings(rings=10),
        "maps": held_by_fd.bpf_maps(maps=2, map_bytes=20 * MIB),
        "memfd": files.memfd(50 * MIB),
        "deleted_file": files.cached_file(50 * MIB, deleted=True),
    }


def _loads_of_kmalloc() -> dict[str, AbstractContextManager[Any]]:
    return {
        "messages": held_by_fd.slab_leak(messages=10_000),
        "leak": leaked_objects(BUILT, LEAKED_OBJECTS),
    }


def _run() -> dict[str, Any]:
    checks = [word for check in _CHECKS for word in ("--check", check)]
    run = runner(*checks, "--duration", "1s", "--output", "json", program="support.patient_runner")
    print("\n".join(f"  {seconds:6.1f} {line}" for seconds, line in run["stderr"]), flush=True)
    return run | {"evidence": json.loads(run["stdout"]) if run["stdout"] else None, "stdout": ""}
