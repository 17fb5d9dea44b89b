"""One guest in QEMU, with its CPUs emulated in software: it needs neither KVM nor a kernel module of the machine."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster.guest_kernel import GuestKernel
from local_cluster.shell import Command
from local_cluster.steps import StepError

# A panic ends QEMU at once (-no-reboot). Mitigations against other guests only cost time here.
_COMMAND_LINE = "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off net.ifnames=0"


@dataclass(frozen=True)
class VirtualMachine:
    """What a guest consists of. Its first disk is the root file system."""

    kernel: GuestKernel
    disks: Sequence[Path]
    init: str
    """The program that the kernel starts, in the root file system."""
    memory_mib: int = 1536
    cpus: int = 2
    kernel_arguments: Sequence[str] = ()
    devices: Sequence[str] = ()
    """Further arguments of QEMU."""
    writable: frozenset[Path] = frozenset()
    """Disks that keep what the guest writes; on others it goes with the guest."""

    def command(self, console: Path) -> Command:
        """The command line that runs it in the foreground; what its console shows goes to the file `console`."""
        machine: list[str | Path] = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max"]
        machine += ["-m", str(self.memory_mib), "-smp", str(self.cpus), "-display", "none", "-no-reboot"]
        machine += ["-serial", f"file:{console}", "-monitor", "none", "-nodefaults"]
        machine += ["-kernel", self.kernel.image, "-initrd", self.kernel.initial_ram_disk]
        machine += ["-append", " ".join((_COMMAND_LINE, f"init={self.init}", *self.kernel_arguments))]
        for disk in self.disks:
            kept = "off" if disk in self.writable else "on"
            machine += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,snapshot={kept}"]
        return [*machine, *self.devices]

    def run(self, console: Path, *, timeout_seconds: float) -> None:
        """Run it until it turns itself off.

        Raises StepError with the end of its console if that takes longer than `timeout_seconds`, if its kernel
        panics, or if QEMU fails.
        """
        # It ends with this process, even if that is killed; others at work on the machine come first.
        command = ["setpriv", "--pdeathsig=KILL", "nice", *self.command(console)]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=subprocess.PIPE) as qemu:
            try:
                _, errors = qemu.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise StepError(f"the guest did not end within {timeout_seconds:.0f} s", log=console) from None
            finally:
                qemu.kill()
        if qemu.returncode != 0:
            raise StepError(f"QEMU ended with status {qemu.returncode}: {errors.decode().strip()}", log=console)
        if b"Kernel panic" in console.read_bytes():
            raise StepError("the guest's kernel panicked", log=console)
