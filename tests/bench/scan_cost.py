"""The cost of a scan, compared with ss on the same sockets.

    python tests/bench/scan_cost.py [--sockets 100000] [--write docs/benchmarks.md]

Both read the same planted sockets, each with two datagrams, one after the other and several times. ss sees one network
namespace, its owners and the kernel's charge, but no pages; the scan sees every namespace and every page.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from memdiag_api.units import format_bytes
from memdiag_node.holders.registry import holder_fields, other_holders
from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.coverage import coverage_of
from memdiag_node.sockets.holders import socket_holdings
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.planter import Planter
from support.benchmarks import machine, write_section

_ROUNDS = 3


def _seconds(action: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        start = time.monotonic()
        action()
        times.append(time.monotonic() - start)
    return statistics.median(times)


def _resident_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def measure(sockets: int) -> str:
    """Plant and scan; returns the table as Markdown."""
    btf = Btf.load()
    holders = holder_fields(btf)
    with Planter() as child, SocketScanner(btf=btf) as scanner:
        del btf  # as the runner does
        truth = child.plant("many_udp", sockets)
        loading_bytes, before_bytes = _resident_bytes("VmHWM"), _resident_bytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is that of the scans (man 5 proc)
        scan_seconds = _seconds(scanner.scan)
        first, last = scanner.scan(), scanner.scan()
        analysis_seconds = _seconds(lambda: socket_holdings(first, last, lambda _: None))
        others_seconds = _seconds(lambda: other_holders(scanner, last, lambda _: None, holders))
        highest_bytes = _resident_bytes("VmHWM")
        namespace = ["nsenter", f"--net=/proc/{child.pid}/ns/net"]
        ss_seconds = _seconds(
            lambda: subprocess.run([*namespace, "ss", "-tunapm"], stdout=subprocess.DEVNULL, check=True)
        )
        coverage = coverage_of(last)
        return f"""\
| planted | scanned | not walked to the end |
|---|---|---|
| {truth["sockets"]} sockets, {truth["packets"]} packets | {coverage.sockets} sockets, {coverage.packets} packets | \
{coverage.incomplete_queues} queues |

| step | seconds |
|---|---|
| scan of every queue | {scan_seconds:.2f} |
| holders, with what is stuck | {analysis_seconds:.2f} |
| pipes, packet rings, page pools, ring buffers | {others_seconds:.2f} |
| `ss -tunapm` | {ss_seconds:.2f} |

A scan takes {scan_seconds / ss_seconds:.2f} times as long as ss. Resident memory: {format_bytes(loading_bytes)} at most
while the programs are compiled and loaded, {format_bytes(before_bytes)} before the scans, {format_bytes(highest_bytes)}
at most while two scans are held and compared.
"""


def main() -> int:
    """Measure and print; with --write, replace the section `Cost of the scan` of a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sockets", type=int, default=100_000)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("scanning needs root", file=sys.stderr)
        return 2
    text = f"{_EXPLANATION}\n{machine()}.\n\n{measure(options.sockets)}"
    print(text)
    if options.write:
        write_section(options.write, "Cost of the scan", text)
    return 0


_EXPLANATION = f"""\
`make bench-scan` plants sockets that hold two unread datagrams each, in a network namespace of their own, scans the
node, and runs `ss -tunapm` in that namespace: median of {_ROUNDS} rounds. ss sees one network namespace, the owners
of sockets and the kernel's charge, but no pages; the scan sees every namespace and every page of a packet. The
scan is measured after its programs were loaded.
"""


if __name__ == "__main__":
    sys.exit(main())
