"""One guest in QEMU, with its CPUs emulated in software: it needs neither KVM nor a kernel module of the machine."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import tsc
from local_cluster.guest_kernel import GuestKernel
from local_cluster.shell import Command
from local_cluster.steps import StepError

CONSOLE_TAIL_LINES = 120
"""A kernel panic prints many lines: registers and call stack of each CPU."""

# A fixed, simple processor (x86-64-v2, which numpy's wheels need), with instructions that emulators have supported for
# years. `max` would add everything that this QEMU emulates, including five-level page tables and the new AVX.
_CPU = "Nehalem,+rdrand"

_COMMAND_LINE = (
    "root=/dev/vda",
    "rw",
    "console=ttyS0",
    "net.ifnames=0",
    "panic=-1",  # a panic ends QEMU at once (-no-reboot)
    "mitigations=off",  # protect against other guests; they only cost time here
    # The emulated CPUs stop whenever the machine has other work. From that, a kernel draws the wrong conclusions:
    "no_timer_check",  # that no timer interrupts arrive: "IO-APIC + timer doesn't work!", and a panic
    "tsc=reliable",  # that the time stamp counter is wrong: each clock read would then exit to the emulator
    "nowatchdog",  # that a CPU hangs
    "rcupdate.rcu_cpu_stall_suppress=1",
)
# Observed with Debian 13's kernel next to two busy loops, in five boots: twice it found three of the four ways to
# connect its timer dead (the fourth failure would be the panic), once it measured its counter as 35 times slower than
# it is. So the frequency is passed to it, below.


class KernelPanicError(StepError):
    """The guest's kernel panicked."""


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
    """More arguments for QEMU."""
    writable: frozenset[Path] = frozenset()
    """Disks that keep what the guest writes; on other disks it is discarded."""

    def command(self) -> Command:
        """The command line that runs it in the foreground; its console is QEMU's standard output."""
        machine: list[str | Path] = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", _CPU]
        machine += ["-m", str(self.memory_mib), "-smp", str(self.cpus), "-display", "none", "-no-reboot"]
        machine += ["-serial", "stdio", "-monitor", "none", "-nodefaults"]
        machine += ["-kernel", self.kernel.image, "-initrd", self.kernel.initial_ram_disk]
        clock = f"tsc_early_khz={tsc.frequency_khz()}"
        machine += ["-append", " ".join((*_COMMAND_LINE, clock, f"init={self.init}", *self.kernel_arguments))]
        for disk in self.disks:
            kept = "off" if disk in self.writable else "on"
            machine += ["-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,snapshot={kept}"]
        return [*machine, *self.devices]

    def run(self, console: Path, *, timeout_seconds: float) -> None:
        """Run it until it powers off; its console output and QEMU's errors go to the file `console`.

        Raises StepError with the end of the console if this takes longer than `timeout_seconds`, if the kernel
        panics (KernelPanicError), or if QEMU fails.
        """
        # It exits with this process, even if that is killed.
        command = ["setpriv", "--pdeathsig=KILL", *self.command()]
        with (
            console.open("wb") as output,
            subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output) as qemu,
        ):
            try:
                status = qemu.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                qemu.kill()
        if b"Kernel panic" in console.read_bytes():
            raise KernelPanicError("the guest's kernel panicked", log=console, log_lines=CONSOLE_TAIL_LINES)
        if status is None:
            problem = f"the guest did not end within {timeout_seconds:.0f} s"
        elif status:
            problem = f"QEMU ended with status {status}"
        else:
            return
        raise StepError(problem, log=console, log_lines=CONSOLE_TAIL_LINES)
