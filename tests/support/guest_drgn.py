"""The guest's side of `make bench-census`: the same slabs, counted by the census and by drgn, in fresh processes.

drgn reads /proc/kcore, which this machine does not have, with the kernel's debug information. It has both from
the disk DISK.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from planted.files import negative_dentries

DISK, _MOUNT_POINT = "/dev/vdd", Path("/mnt")
LISTED = "dentry"
"""The cache whose objects are listed, one by one."""
MANY = 1_000
"""Places for objects of a cache that is worth a comparison."""
_TIMEOUT_SECONDS = 240


def compare(names: int, rounds: int) -> dict[str, Any]:
    """Plant directory entries, and let both count all caches and list the entries, in turn; drgn first."""
    if ctypes.CDLL(None, use_errno=True).mount(DISK.encode(), bytes(_MOUNT_POINT), b"ext4", 1, None):
        raise OSError(ctypes.get_errno(), f"mount {DISK}")
    measured: dict[str, Any] = {"drgn": [], "ours": []}
    with negative_dentries(names):
        for _ in range(rounds):
            for tool, found in measured.items():
                found.append(_run(tool))
    return measured


def _run(tool: str) -> dict[str, Any]:
    environment = os.environ | {"PYTHONPATH": f"{_MOUNT_POINT / 'drgn'}:{os.environ['PYTHONPATH']}"}
    command = [sys.executable, "-m", "support.guest_drgn", tool]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False
    )
    print(f"  {tool}: {done.stdout[:300]}{done.stderr}", flush=True)
    done.check_returncode()
    report: dict[str, Any] = json.loads(done.stdout)
    return report


class _Clock:
    """The CPU time of each step, by name."""

    def __init__(self) -> None:
        self.cpu_seconds: dict[str, float] = {}
        self.step("imports")

    def step(self, name: str) -> None:
        """Everything since the step before was `name`."""
        self.cpu_seconds[name] = time.process_time() - sum(self.cpu_seconds.values())


def _ours() -> dict[str, Any]:
    from memdiag_node.kernel.btf import Btf
    from memdiag_node.slab.layout import object_layout
    from support.slab_census import lean_memory, load_programs, take_slab_census

    clock = _Clock()
    btf = Btf.load()
    at = object_layout(btf)
    with lean_memory(at) as memory, load_programs(at) as programs:
        clock.step("start")
        census = take_slab_census(memory, btf, at=at, programs=programs)
        counted = zip(census.caches, census.count(), strict=True)
        caches = {cache.name: [count.objects, count.in_use] for cache, count in counted}
        clock.step("count")
        listed = sum(len(census.objects(number)) for number in census.named(LISTED))
        clock.step("list")
        return {"cpu_seconds": clock.cpu_seconds, "caches": caches, "listed": listed}


def _drgn() -> dict[str, Any]:
    import drgn
    from drgn.helpers.linux.slab import (
        find_slab_cache,
        for_each_slab_cache,
        slab_cache_for_each_allocated_object,
        slab_cache_usage,
    )

    clock = _Clock()
    program = drgn.Program()
    program.set_kernel()
    program.load_debug_info([_MOUNT_POINT / "vmlinux"])
    clock.step("start")
    caches = {}
    for cache in for_each_slab_cache(program):
        usage = slab_cache_usage(cache)
        caches[os.fsdecode(cache.name.string_())] = [usage.num_objs, usage.num_objs - usage.free_objs]
    clock.step("count")
    listed = sum(1 for _ in slab_cache_for_each_allocated_object(find_slab_cache(program, LISTED), "struct dentry"))
    clock.step("list")
    return {"cpu_seconds": clock.cpu_seconds, "caches": caches, "listed": listed, "version": drgn.__version__}


_TOOLS: dict[str, Callable[[], dict[str, Any]]] = {"ours": _ours, "drgn": _drgn}

if __name__ == "__main__":
    json.dump(_TOOLS[sys.argv[1]](), sys.stdout)
