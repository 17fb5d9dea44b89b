"""Whether memory that a balloon gave back to the hypervisor is still counted in MemTotal.

Most balloons take what they give back out of MemTotal. Two do not: VMware's (drivers/misc/vmw_balloon.c), and virtio's
where the hypervisor lets the guest have pages back rather than run out of memory (drivers/virtio/virtio_balloon.c).
"""

from pathlib import Path

# VIRTIO_BALLOON_F_DEFLATE_ON_OOM (include/uapi/linux/virtio_balloon.h): its place in sysfs's row of feature digits.
_DEFLATE_ON_OOM = 2


def balloon_stays_in_total(sys_root: Path) -> bool:
    """Look for a balloon driver whose pages stay in MemTotal. Raises OSError when sysfs is not readable."""
    if (sys_root / "module/vmw_balloon").exists():
        return True
    devices = (sys_root / "bus/virtio/drivers/virtio_balloon").glob("virtio*/features")
    return any(device.read_bytes()[_DEFLATE_ON_OOM : _DEFLATE_ON_OOM + 1] == b"1" for device in devices)
