"""What a balloon driver does to the counters: whether its memory stays in MemTotal, whether it borrows free pages.

Most balloons take what they give back out of MemTotal. Two do not: VMware's (drivers/misc/vmw_balloon.c), and virtio's
where the hypervisor lets the guest have pages back rather than run out of memory (drivers/virtio/virtio_balloon.c).
"""

from pathlib import Path

# VIRTIO_BALLOON_F_* (include/uapi/linux/virtio_balloon.h): places in sysfs's row of feature digits.
_DEFLATE_ON_OOM, _REPORTING = 2, 5


def balloon_stays_in_total(sys_root: Path) -> bool:
    """Look for a balloon driver whose pages stay in MemTotal. Raises OSError when sysfs is not readable."""
    if (sys_root / "module/vmw_balloon").exists():
        return True
    return _has_virtio_feature(sys_root, _DEFLATE_ON_OOM)


def free_pages_are_reported(sys_root: Path) -> bool:
    """Whether a balloon driver tells the hypervisor which pages are free. Raises OSError when sysfs is not readable.

    Meanwhile these pages are on no free list: up to 32 blocks of the highest order, 128 MiB, at a time, and block after
    block for up to a sixteenth of the free memory, then not for two seconds (mm/page_reporting.c). Hyper-V's driver
    (drivers/hv/hv_balloon.c) does so wherever the host can.
    """
    return any((sys_root / "bus/vmbus/drivers/hv_balloon").glob("*-*-*")) or _has_virtio_feature(sys_root, _REPORTING)


def _has_virtio_feature(sys_root: Path, feature: int) -> bool:
    devices = (sys_root / "bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    return any(device.read_bytes()[feature : feature + 1] == b"1" for device in devices)
