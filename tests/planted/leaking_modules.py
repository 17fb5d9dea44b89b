"""Memory that kernel modules of our own allocated (folder module): loaded, and unloaded at the end, which frees it."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from planted.sockets.common import PAGE_BYTES, libc

LEAK, PACKETS, PAGES, GROWTH = "planted_leak", "planted_packets", "planted_pages", "planted_growth"
SOURCES = tuple(Path(__file__).parent / "module" / f"{name}.c" for name in (LEAK, PACKETS, PAGES, GROWTH))

_SYS_DELETE_MODULE, _SYS_FINIT_MODULE = 176, 313  # x86-64


@dataclass(frozen=True, slots=True)
class LeakedObjects:
    """Objects of kmalloc-64. Each points to `function` of the module, in its third word."""

    module: str
    function: str
    objects: int
    object_bytes: int


@dataclass(frozen=True, slots=True)
class LostPackets:
    """Packets in no queue, of the first network namespace's loopback, without a socket."""

    module: str
    packets: int
    packet_bytes: int
    charge_bytes: int
    pinned_bytes: int
    """The blocks of their fragments, one for each packet; their heads are slab."""


@dataclass(frozen=True, slots=True)
class LostPages:
    """Single pages that nothing in the kernel's own data refers to."""

    module: str
    pages: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Growing:
    """One kind of memory that a module allocates steadily."""

    function: str
    memory_class: str
    cache: str
    """A regular expression for the name of its slab cache; empty if it is in none."""
    per_second: int
    object_bytes: int
    """For per-CPU memory, on all CPUs together. For vmalloc, without the page that separates two areas."""


_GROWTH = {
    "kmalloc": Growing("planted_kmalloc", "Slab", r"kmalloc(-rnd-\d\d)?-64", 3_200, 64),
    "cache": Growing("planted_cache_alloc", "Slab", GROWTH, 2_000, 192),
    "areas": Growing("planted_vmalloc", "Vmalloc", "", 10, 32 * PAGE_BYTES),
    "percpu": Growing("planted_percpu", "Percpu", "", 200, 256),
}
"""By the parameter of the module."""


@contextlib.contextmanager
def leaked_objects(built: Path, objects: int) -> Iterator[LeakedObjects]:
    """Load the module from the folder `built`; it must have been built for this kernel."""
    with _loaded(built, LEAK, f"objects={objects}") as parameters:
        yield LeakedObjects(LEAK, f"{LEAK}_callback", _number(parameters, "allocated"), 64)


@contextlib.contextmanager
def lost_packets(built: Path, packets: int, order: int = 0) -> Iterator[LostPackets]:
    """Packets with one block of 2^order pages each."""
    with _loaded(built, PACKETS, f"packets={packets} order={order}") as parameters:
        allocated, block_bytes = _number(parameters, "allocated"), PAGE_BYTES << order
        charge_bytes = _number(parameters, "charge_bytes")
        header_bytes = 128
        yield LostPackets(
            PACKETS, allocated, allocated * (header_bytes + block_bytes), charge_bytes, allocated * block_bytes
        )


@contextlib.contextmanager
def lost_pages(built: Path, pages: int) -> Iterator[LostPages]:
    """Pages of alloc_page, which no page table maps."""
    with _loaded(built, PAGES, f"pages={pages}") as parameters:
        allocated = _number(parameters, "allocated")
        yield LostPages(PAGES, allocated, allocated * PAGE_BYTES)


@contextlib.contextmanager
def growing(built: Path, *kinds: str) -> Iterator[list[Growing]]:
    """Memory of these kinds, or of all, that one thread of the module allocates steadily; its name is GROWTH."""
    chosen = kinds or tuple(_GROWTH)
    with _loaded(built, GROWTH, " ".join(f"{kind}={_GROWTH[kind].per_second}" for kind in chosen)) as parameters:
        cpus = _possible_cpus()
        yield [
            replace(one, object_bytes=one.object_bytes * cpus) if one.memory_class == "Percpu" else one
            for one in map(_GROWTH.__getitem__, chosen)
        ]
        if failed := _number(parameters, "failed"):
            raise RuntimeError(f"{failed} allocations failed")


def _possible_cpus() -> int:
    return int(Path("/sys/devices/system/cpu/possible").read_text().split("-")[-1]) + 1


def load_module(path: Path, parameters: str = "") -> None:
    """Load an uncompressed module. Raises OSError, FileExistsError if it has been loaded."""
    fd = os.open(path, os.O_RDONLY)
    try:
        if libc.syscall(_SYS_FINIT_MODULE, fd, parameters.encode(), 0):
            raise OSError(ctypes.get_errno(), f"loading {path.name}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)


def unload_module(name: str) -> None:
    """Unload a module. Raises OSError if something uses it."""
    if libc.syscall(_SYS_DELETE_MODULE, name.encode(), os.O_NONBLOCK):
        raise OSError(ctypes.get_errno(), f"unloading {name}: {os.strerror(ctypes.get_errno())}")


@contextlib.contextmanager
def _loaded(built: Path, name: str, parameters: str) -> Iterator[Path]:
    """Yields the folder of the module's parameters."""
    load_module(built / f"{name}.ko", parameters)
    try:
        yield Path(f"/sys/module/{name}/parameters")
    finally:
        unload_module(name)


def _number(parameters: Path, name: str) -> int:
    return int((parameters / name).read_text())
