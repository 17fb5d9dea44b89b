"""tests/support/guest_program.py on one of Debian's kernels, in a guest from boot to end, and on the machine's own."""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import guest_disk, guest_kernel
from local_cluster.guest_kernel import GuestKernel
from local_cluster.paths import PROJECT
from local_cluster.virtual_machine import KernelPanicError, VirtualMachine
from support.guest_program import ECHO_ADDRESS, ECHO_PORT

NATIVE = "native"
"""The machine's own kernel, where a test's parameter is a Debian suite otherwise."""

RESULT_BYTES = 32 << 20
TIMEOUT_SECONDS = 1500
WAIT_SECONDS = TIMEOUT_SECONDS + 100
"""The timeout of a test that waits for a guest."""
BOOT_ATTEMPTS = 2

# A network with only an echo server, made by QEMU: data sent there comes back through the card's driver.
_NETWORK_CARD = (
    "-netdev",
    f"user,id=link,restrict=on,guestfwd=tcp:{ECHO_ADDRESS}:{ECHO_PORT}-cmd:cat",
    "-device",
    "virtio-net-pci,netdev=link,romfile=",
)
_STARTED = "the guest's program starts"
_START = f"""\
#!/bin/sh
echo "{_STARTED}"
export PYTHONPATH=/source/api:/source/operator:/source/node_runner:/source/tests
cd /source/tests
exec python3 -m %s /dev/vdc
"""


@dataclass(frozen=True)
class GuestRun:
    """The results on one kernel, by step, and the time they took (a guest: from power on to power off)."""

    reports: dict[str, dict[str, Any]]
    seconds: float
    configuration: str
    """The kernel's build options; empty for the machine's own."""
    warnings: Sequence[str] = ()
    """Problems that were not caused by the program."""

    def figures(self) -> str:
        """One line about the first measurement: the kernel, and the time of each part."""
        report = self.reports["planted"]
        release = self.reports["host"]["release"]
        if report.get("status") != 0:
            return f"{release:<32} no measurement"
        said = {line.partition(": ")[2].partition(" for ")[0]: seconds for seconds, line in report["stderr"]}
        load = said["tracing"] - said["scanning all sockets"]
        evidence = json.loads(report["stdout"])
        return (
            f"{release:<32} load {load:5.1f} s   traced {evidence['window']['tracedSeconds']:5.1f} s   "
            f"scan {evidence['coverage']['scanSeconds']:5.2f} s   all steps {self.seconds:5.0f} s"
        )


def run_guest(suite: str, work: Path) -> GuestRun:
    """Boot the kernel of a Debian suite and run every step there.

    A kernel that panics before our program starts is booted a second time, as the emulator causes that. Raises
    StepError with the guest's console.
    """
    kernel = guest_kernel.provide(suite)
    reports, seconds, warnings = boot(kernel, "support.guest_program", work)
    return GuestRun(reports, seconds, kernel.configuration.read_text(), warnings)


def boot(
    kernel: GuestKernel,
    module: str,
    work: Path,
    *,
    extra: Sequence[str] = (),
    disks: Sequence[Path] = (),
    kernel_arguments: Sequence[str] = (),
    devices: Sequence[str] = (),
) -> tuple[dict[str, Any], float, list[str]]:
    """Run a Python module in a guest until it powers off; returns its results, the seconds, and warnings.

    The module is called with the block device for its results (write_results), in the folder tests. `extra` are files
    and folders of the folder `work`, which the guest has in /source; `disks` are more disks, /dev/vdd and so on;
    `devices` are more arguments for QEMU.
    """
    root = guest_disk.provide_runner_disk()
    sources, results = _pack_sources(work, module, extra), work / "results"
    with results.open("wb") as file:
        file.truncate(RESULT_BYTES)
    machine = VirtualMachine(
        kernel=kernel,
        disks=[root, sources, results, *disks],
        init=guest_disk.RUNNER_INIT,
        kernel_arguments=kernel_arguments,
        writable=frozenset({results}),
        devices=(*_NETWORK_CARD, *devices),
    )
    warnings: list[str] = []
    started = time.monotonic()
    for attempt in range(1, BOOT_ATTEMPTS + 1):
        console = work / f"console-{attempt}.log"
        try:
            machine.run(console, timeout_seconds=TIMEOUT_SECONDS - (time.monotonic() - started))
            break
        except KernelPanicError as panic:
            if attempt == BOOT_ATTEMPTS or _STARTED in console.read_text(errors="replace"):
                raise
            warnings.append(f"{kernel.folder.parent.name}: booted again after {panic}")
    seconds = time.monotonic() - started
    return _read(results, log=console), seconds, warnings


def run_here(work: Path) -> GuestRun:
    """Run every step that can be undone on the machine's own kernel, in a mount namespace."""
    log, results = work / "log", work / "results"
    results.write_bytes(bytes(8))
    started = time.monotonic()
    with log.open("wb") as output:
        subprocess.run(
            ["unshare", "--mount", sys.executable, PROJECT / "tests/support/guest_program.py", results, "--own-kernel"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=TIMEOUT_SECONDS,
            check=False,  # without results, see the log
        )
    return GuestRun(_read(results, log=log), time.monotonic() - started, configuration="")


def _read(results: Path, *, log: Path) -> dict[str, dict[str, Any]]:
    (length,) = struct.unpack_from("<Q", found := results.read_bytes())
    assert length, f"there are no results; the log: {log.read_text(errors='replace')}"
    reports: dict[str, dict[str, Any]] = json.loads(found[8 : 8 + length])
    return reports


def _pack_sources(work: Path, module: str, extra: Sequence[str]) -> Path:
    start = work / "start"
    start.write_text(_START % module)
    start.chmod(0o755)
    archive = work / "sources.tar"
    folders = ["api", "operator", "node_runner", "tests/planted", "tests/support"]
    subprocess.run(
        ["tar", "--create", f"--file={archive}", "--exclude=__pycache__", f"--directory={work}", "start", *extra,
         f"--directory={PROJECT}", *folders],
        check=True,
    )  # fmt: skip
    return archive
