"""Finding frame 0's struct page in a pod's limits, beside as much memory in huge anonymous pages as a test may take."""

import subprocess
import sys

HUGE_MEMORY_GIB = 5
# The default of a container runtime: 64 KiB of locked memory, without the capability to exceed it.
LIMITED = ("setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=65536:65536")

PROGRAM = f"""
import ctypes, mmap
from memdiag_node.trace.pages import page_trace
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots

libc = ctypes.CDLL(None)
with mmap.mmap(-1, 1 << 19, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
    assert libc.mlock(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory))), ctypes.c_size_t(1 << 19))
huge = mmap.mmap(-1, {HUGE_MEMORY_GIB} << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
huge.madvise(mmap.MADV_HUGEPAGE)
for position in range(0, len(huge), 1 << 21):
    huge[position] = 1
btf = Btf.load()
for alignment in (1 << 30, 1 << 24):
    page_trace.alignment_bytes = lambda: alignment
    with page_trace.PageTrace(page_trace.TraceSettings(duration_seconds=1), roots=HostRoots()) as trace:
        print(trace._first_page)
"""


def test_frame_0_is_found_with_64_kib_of_locked_memory_and_much_anonymous_memory() -> None:
    """With the alignment of arm64 there are 64 times as many possible starts as on this machine: the same one fits."""
    done = subprocess.run([*LIMITED, sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own, finer = done.stdout.split()
    assert own == finer
