"""A guest's balloon, inflated by QEMU as soon as the guest's driver is there (QEMU's monitor: balloon)."""

from collections.abc import Sequence
from pathlib import Path

from local_cluster.virtual_machine import VirtualMachine

_MIB = 1 << 20


def balloon(work: Path, size_bytes: int) -> Sequence[str]:
    """QEMU's arguments for a balloon that takes `size_bytes` of the guest's memory.

    The monitor's commands are a file of the folder `work`, instead of a pipe: QEMU reads it when it starts, and the
    balloon's driver reads the size when it is loaded.
    """
    orders = work / "monitor"
    orders.with_suffix(".in").write_text(f"balloon {VirtualMachine.memory_mib - size_bytes // _MIB}\n")
    orders.with_suffix(".out").touch()
    return (
        "-device",
        "virtio-balloon-pci",
        "-chardev",
        f"pipe,id=monitor,path={orders}",
        "-mon",
        "chardev=monitor,mode=readline",
    )
