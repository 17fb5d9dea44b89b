"""Effects of a balloon driver on the counters: whether its memory stays in MemTotal, whether it borrows free pages.

Most balloons subtract the memory that they return to the host from MemTotal. Two do not: VMware's
(drivers/misc/vmw_balloon.c), and virtio's if the hypervisor lets the guest take pages back rather than run out of
memory (drivers/virtio/virtio_balloon.c).
"""

from pathlib import Path

# VIRTIO_BALLOON_F_* (include/uapi/linux/virtio_balloon.h): positions in the feature digits of sysfs.
_DEFLATE_ON_OOM, _REPORTING = 2, 5


def balloon_stays_in_total(sys_root: Path) -> bool:
    """Return whether a balloon driver keeps its pages in MemTotal. Raises OSError if sysfs is not readable."""
    if (sys_root / "module/vmw_balloon").exists():
        return True
    return _has_virtio_feature(sys_root, _DEFLATE_ON_OOM)


def free_pages_are_reported(sys_root: Path) -> bool:
    """Return whether a balloon driver reports free pages to the hypervisor. Raises OSError if sysfs is not readable.

    While they are reported, these pages are on no free list: up to 32 blocks of the highest order, 128 MiB, at a time,
    block after block for up to a sixteenth of the free memory, then not for two seconds (mm/page_reporting.c). The
    driver of Hyper-V (drivers/hv/hv_balloon.c) does this if the host supports it.
    """
    return any((sys_root / "bus/vmbus/drivers/hv_balloon").glob("*-*-*")) or _has_virtio_feature(sys_root, _REPORTING)


def _has_virtio_feature(sys_root: Path, feature: int) -> bool:
    devices = (sys_root / "bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    return any(device.read_bytes()[feature : feature + 1] == b"1" for device in devices)
