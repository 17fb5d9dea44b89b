"""Memory that processes have by themselves: anonymous memory, page tables, the kernel stacks of threads."""

import contextlib
import dataclasses
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from planted import memory
from planted.cases.case import Answer, Case, PlantedTruth, UnavailableError, of_child
from planted.cases.unread import enter_cgroup
from planted.child import Truth, held
from planted.sockets.common import MIB, PAGE_BYTES, libc

_PR_SET_PDEATHSIG = 1
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_HUGE_PAGE_BYTES = 2 * MIB  # what one page of page table maps
PROCESS_KINDS = ("ProcessMemory", "LargeClass", "LargeHolder")


@contextlib.contextmanager
def _anonymous() -> Iterator[PlantedTruth]:
    with held(hold_memory, "anon", 600 * MIB) as child:
        yield of_child(child, Answer.HARMLESS, PROCESS_KINDS, "AnonPages")


@contextlib.contextmanager
def _huge_page_waste() -> Iterator[PlantedTruth]:
    if "[never]" in _HUGE_PAGES.read_text():
        raise UnavailableError("transparent huge pages are switched off")
    with held(_touch_huge_pages, 250) as child:
        yield of_child(child, Answer.HARMLESS, ("HugePageWaste", *PROCESS_KINDS), "AnonPages")


@contextlib.contextmanager
def _page_tables() -> Iterator[PlantedTruth]:
    with held(hold_memory, "page_tables", 400 * MIB) as child:
        yield of_child(child, Answer.HARMLESS, PROCESS_KINDS, "PageTables")


@contextlib.contextmanager
def _many_threads() -> Iterator[PlantedTruth]:
    with held(hold_memory, "thread_stacks", 128 * MIB) as child:
        truth = of_child(child, Answer.HARMLESS, PROCESS_KINDS, "KernelStack")
        threads = len(list(Path(f"/proc/{child.pid}/task").iterdir()))
        yield dataclasses.replace(truth, freed_bytes=truth.size_bytes + threads * _task_bytes())


@contextlib.contextmanager
def _shared_mapping() -> Iterator[PlantedTruth]:
    with held(_map_together, 40, 12 << 30) as child:
        found = child.truth
        processes = len(found["pids"])
        yield PlantedTruth(Answer.HARMLESS, PROCESS_KINDS, ("PageTables",), found["size_bytes"], processes=processes)


def hold_memory(kept: ExitStack, kind: str, size_bytes: int, cgroup: str = "") -> Truth:
    """Memory of one of the kinds of `planted.memory`, in a cgroup if one is given."""
    Path("/proc/self/comm").write_text("planted")  # a program of its own, not one of many Pythons
    enter_cgroup(cgroup)
    kept.callback(memory._planted.close)
    return {"size_bytes": memory.KINDS[kind](size_bytes)}


def _task_bytes() -> int:
    """The slab memory of one thread's task_struct, by the kernel's list of caches. 0 if it cannot be read."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/slabinfo").read_text().splitlines():
            name, *figures = line.split()
            if name == "task_struct":
                objects_per_slab, pages_per_slab = map(int, figures[3:5])
                return pages_per_slab * PAGE_BYTES // objects_per_slab
    return 0


def _touch_huge_pages(kept: ExitStack, pages: int) -> Truth:
    """One byte of each huge page is used; the kernel backs all of it with memory."""
    area = mmap.mmap(-1, (pages + 1) * _HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.enter_context(area)
    area.madvise(mmap.MADV_HUGEPAGE)
    for offset in range(0, len(area), _HUGE_PAGE_BYTES):
        area[offset] = 1
    return {"size_bytes": pages * _HUGE_PAGE_BYTES}


def _map_together(kept: ExitStack, processes: int, mapped_bytes: int) -> Truth:
    """A file in memory with one page in every 2 MiB, mapped by every process: each has page tables of its own."""
    fd = os.memfd_create("planted-shared-mapping")
    kept.callback(os.close, fd)
    os.ftruncate(fd, mapped_bytes)
    pids = []
    for _ in range(processes):
        ready, mapped = os.pipe()
        pid = os.fork()
        if pid == 0:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            area = mmap.mmap(fd, mapped_bytes, prot=mmap.PROT_READ)
            for offset in range(0, mapped_bytes, _HUGE_PAGE_BYTES):
                area[offset]
            os.write(mapped, b"!")
            signal.pause()
        pids.append(pid)
        kept.callback(os.waitpid, pid, 0)
        kept.callback(os.kill, pid, signal.SIGKILL)
        os.close(mapped)
        os.read(ready, 1)
        os.close(ready)
    return {"pids": pids, "size_bytes": processes * (mapped_bytes // _HUGE_PAGE_BYTES) * PAGE_BYTES}


CASES = (
    Case("anonymous_memory", "a process with 600 MiB of anonymous memory", _anonymous),
    Case("huge_page_waste", "a process that uses one byte of each of 250 huge pages", _huge_page_waste),
    Case("page_tables", "a process that maps 200 GiB sparsely", _page_tables),
    Case("shared_mapping", "40 processes that map one file of 12 GiB sparsely", _shared_mapping),
    Case("many_threads", "a process with 8,192 threads", _many_threads),
)
