"""One reading of everything that shows memory of the machine. A part that cannot be read costs only itself."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeVar

from memdiag_node.procfs.allocinfo import Site, parse_allocinfo
from memdiag_node.procfs.balloon import balloon_stays_in_total
from memdiag_node.procfs.buddyinfo import ZoneBlocks, parse_buddyinfo
from memdiag_node.procfs.hugepages import HugePages, parse_count, read_huge_pages
from memdiag_node.procfs.iomem import Areas, parse_iomem, parse_present_pages
from memdiag_node.procfs.machine_meminfo import MachineMemInfo, parse_machine_meminfo
from memdiag_node.procfs.machine_vmstat import MachineVmStat, parse_machine_vmstat
from memdiag_node.procfs.page_owner import OwnerStack, parse_page_owner_stacks
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.swaps import Swap, parse_swaps
from memdiag_node.procfs.vmallocinfo import CallerPages, pages_by_caller
from memdiag_node.procfs.zram import Zram, read_zram

MAX_AREAS = 20_000
"""Lines of /proc/vmallocinfo that are read. Before Linux 6.9, each part of it is found by a walk from the start, under
a lock that every vmalloc takes."""
MAX_AREA_SECONDS = 2.0
_MAX_ALLOCINFO_BYTES = 16 << 20
_MAX_PAGE_OWNER_BYTES = 16 << 20
_BALLOONS = (
    ("virtio_balloon", "bus/virtio/drivers/virtio_balloon", "virtio*"),
    ("hv_balloon", "bus/vmbus/drivers/hv_balloon", "*-*-*"),
    ("xen_balloon", "devices/system/xen_memory", "xen_memory*"),
    ("vmw_balloon", "module", "vmw_balloon"),
)
_MOUNT_DEVICE = re.compile(rb"\S+ \S+ \S+ \S+ .* - \S+ (\S+) ")
_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class ReadVmalloc:
    """vmalloc by caller, and whether all areas were read."""

    callers: list[CallerPages]
    is_complete: bool


@dataclass(frozen=True, slots=True)
class ReadBalloon:
    """The balloon driver."""

    driver: str
    is_part_of_total: bool
    current_bytes: int | None = None
    target_bytes: int | None = None


@dataclass(slots=True)
class MachineReading:
    """What was read, in raw form. A part is None if this machine does not have it, or if it could not be read."""

    huge_pages: list[HugePages] | None = None
    zram: list[Zram] | None = None
    swaps: list[Swap] | None = None
    mounted_devices: set[str] | None = None
    """Names of the devices of all mounts of init's mount namespace."""
    zswap_pool: str = ""
    """The allocator of zswap. Empty if the kernel has no choice of it: zsmalloc, since Linux 6.18."""
    meminfo: MachineMemInfo | None = None
    vmstat: MachineVmStat | None = None
    balloon: ReadBalloon | None = None
    present_pages: int | None = None
    """Pages of the zones that exist."""
    firmware_ram_bytes: int | None = None
    areas: Areas | None = None
    """From /proc/iomem."""
    crash_kernel_bytes: int | None = None
    vmalloc: ReadVmalloc | None = None
    allocation_sites: list[Site] | None = None
    page_owner: list[OwnerStack] | None = None
    free_blocks: list[ZoneBlocks] | None = None
    not_read: list[str] = field(default_factory=list)


def read_machine(roots: HostRoots, *, vmalloc_bytes: int, is_last: bool) -> MachineReading:
    """Read every part. `vmalloc_bytes`: the size from which vmalloc is read by caller.

    Parts that are not compared with the start of the window are read only at its end (`is_last`).
    """
    proc, sys = roots.proc, roots.sys
    read = MachineReading()
    part = _parts(read.not_read)
    read.meminfo = part("meminfo", lambda: parse_machine_meminfo((proc / "meminfo").read_bytes()))
    read.vmstat = part("vmstat", lambda: parse_machine_vmstat((proc / "vmstat").read_bytes()))
    if read.meminfo and read.meminfo.vmalloc_bytes >= vmalloc_bytes:
        read.vmalloc = part("vmallocinfo", lambda: read_vmalloc(proc / "vmallocinfo"))
    read.allocation_sites = part("allocinfo", lambda: _allocation_sites(proc / "allocinfo"))
    if not is_last:
        return read
    read.huge_pages = part("pools of huge pages", lambda: read_huge_pages(sys))
    read.zram = part("zram", lambda: read_zram(sys))
    read.swaps = part("swaps", lambda: parse_swaps((proc / "swaps").read_bytes()))
    if read.zram:
        read.mounted_devices = part("mounts", lambda: _mounted_devices(proc / "1/mountinfo"))
    read.zswap_pool = part("zswap", lambda: _text(sys / "module/zswap/parameters/zpool")) or ""
    read.balloon = part("balloon", lambda: read_balloon(sys))
    read.present_pages = part("zones", lambda: parse_present_pages((proc / "zoneinfo").read_bytes()))
    read.firmware_ram_bytes = part("memory map of the firmware", lambda: _firmware_ram_bytes(sys / "firmware/memmap"))
    read.areas = part("iomem", lambda: parse_iomem((proc / "iomem").read_bytes()))
    read.crash_kernel_bytes = part("crash kernel", lambda: _count(sys / "kernel/kexec_crash_size"))
    read.page_owner = part("page_owner", lambda: _page_owner(sys / "kernel/debug/page_owner_stacks/show_stacks"))
    read.free_blocks = part("buddyinfo", lambda: parse_buddyinfo((proc / "buddyinfo").read_bytes()))
    return read


def read_vmalloc(path: Path, *, max_areas: int = MAX_AREAS, max_seconds: float = MAX_AREA_SECONDS) -> ReadVmalloc:
    """Read /proc/vmallocinfo up to a limit of areas and of time. Raises OSError or ProcFormatError."""
    deadline = time.monotonic() + max_seconds
    is_complete = True

    def bounded(file: BinaryIO) -> Iterator[bytes]:
        nonlocal is_complete
        for number, line in enumerate(file):
            if number >= max_areas or time.monotonic() > deadline:
                is_complete = False
                return
            yield line

    with path.open("rb") as file:
        callers = pages_by_caller(bounded(file), source=str(path))
    return ReadVmalloc(callers, is_complete)


def read_balloon(sys: Path) -> ReadBalloon | None:
    """Return the balloon driver that has a device. None if there is no such driver. Raises OSError."""
    for driver, folder, device in _BALLOONS:
        found = sorted((sys / folder).glob(device))
        if found:
            is_xen = driver == "xen_balloon"
            return ReadBalloon(
                driver,
                balloon_stays_in_total(sys),
                current_bytes=_kilobytes(found[0] / "info/current_kb") if is_xen else None,
                target_bytes=_kilobytes(found[0] / "target_kb") if is_xen else None,
            )
    return None


def _parts(not_read: list[str]) -> Callable[[str, Callable[[], _Part]], _Part | None]:
    """Return a function that reads a part. A file that does not exist is not an error: kernels differ."""

    def part(name: str, read: Callable[[], _Part]) -> _Part | None:
        try:
            return read()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            not_read.append(f"{name}: {error}")
            return None

    return part


def _allocation_sites(path: Path) -> list[Site]:
    with path.open("rb") as file:
        text = file.read(_MAX_ALLOCINFO_BYTES)
    return parse_allocinfo(_whole_lines(text, _MAX_ALLOCINFO_BYTES), source=str(path))


def _page_owner(path: Path) -> list[OwnerStack]:
    with path.open("rb") as file:
        text = file.read(_MAX_PAGE_OWNER_BYTES)
    return parse_page_owner_stacks(_whole_lines(text, _MAX_PAGE_OWNER_BYTES), source=str(path))


def _whole_lines(text: bytes, limit: int) -> bytes:
    return text if len(text) < limit else text[: text.rfind(b"\n") + 1]


def _mounted_devices(path: Path) -> set[str] | None:
    """Return the names of mounted devices. None if the mounts of init cannot be read, which requires ptrace."""
    try:
        lines = path.read_bytes().splitlines()
    except PermissionError:
        return None
    devices = (match[1] for line in lines if (match := _MOUNT_DEVICE.match(line + b" ")))
    return {Path(device.decode(errors="backslashreplace")).name for device in devices}


def _firmware_ram_bytes(folder: Path) -> int | None:
    """Add up the memory in the firmware's map. None without one (x86 only), or if it is hidden in a container."""
    total = 0
    for entry in itertools.islice(folder.iterdir(), 4096):
        if _text(entry / "type") == "System RAM":
            total += int(_text(entry / "end"), 16) - int(_text(entry / "start"), 16) + 1
    return total or None


def _text(path: Path) -> str:
    return path.read_bytes().strip().decode(errors="backslashreplace")


def _count(path: Path) -> int:
    return parse_count(path.read_bytes(), source=str(path))


def _kilobytes(path: Path) -> int | None:
    try:
        return _count(path) * 1024
    except OSError:
        return None
