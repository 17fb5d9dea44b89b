"""The program for each kernel of the matrix: plants loads, runs memdiag-node, then again with features removed.

Usage: guest_program.py RESULTS [--own-kernel]: writes a JSON object to the block device (or file) RESULTS. The tests
check it on the machine (tests/vm/test_kernels.py). With --own-kernel it runs on the machine itself, in a separate mount
namespace, and leaves out everything that only a reboot would undo.
"""

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from memdiag_api.capabilities import RUNNER_CAPABILITIES
from planted.allocations import Allocator
from planted.sockets.common import MIB, inq, wait_for
from planted.sockets.planter import Planter
from support.capabilities import only

STUCK_MESSAGES, WINDOW_MESSAGES = 1_000, 2_000
DATAGRAMS = 500
PIPE_BYTES = 8 * MIB
CARD_BYTES = 4 * MIB
RING_BYTES = 2 * MIB
"""More than the receive buffers of the card's driver: up to a MiB in its ring and its page pool's caches."""
CARD, CARD_ADDRESS, CARD_NETMASK = "eth0", "10.0.2.15", "255.255.255.0"
ECHO_SECONDS = 60
ECHO_ADDRESS, ECHO_PORT = "10.0.2.100", 7  # in the network that QEMU makes up
PLANTER_UID = 12345
POD_UID = "8a3f0c1d-52b7-4b5c-9e0e-6f2d1a7c3b94"
CONTAINER_ID = "4f1c" * 16

KPTR_RESTRICT = Path("/proc/sys/kernel/kptr_restrict")
DMESG_RESTRICT = Path("/proc/sys/kernel/dmesg_restrict")
V2_CONTROLLERS = Path("/sys/fs/cgroup/cgroup.controllers")

_SYS_BPF = 321  # x86-64
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_MS_BIND = 4096
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _IFF_UP = 0x8914, 0x8916, 0x891C, 1
_SO_RCVBUFFORCE = 33  # socket(7); Python has no name for it

Report = dict[str, Any]
_libc = ctypes.CDLL(None, use_errno=True)


def runner(
    *arguments: str,
    capabilities: Sequence[str] | None = RUNNER_CAPABILITIES,
    while_tracing: Callable[[], None] | None = None,
    program: str = "memdiag_node.cli",
    **popen: Any,
) -> Report:
    """Run memdiag-node with only these capabilities; returns its output, exit status, and the time of each line."""
    started = time.monotonic()
    said: list[tuple[float, str]] = []
    command = [*([] if capabilities is None else only(capabilities)), sys.executable, "-m", program, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
    effective = ""
    assert process.stdout is not None
    assert process.stderr is not None
    output: list[str] = []
    reader = threading.Thread(target=lambda out: output.append(out.read()), args=(process.stdout,))
    reader.start()
    for line in process.stderr:
        said.append((time.monotonic() - started, line.rstrip()))
        if "tracing for" in line:
            effective = effective_capabilities(process.pid)
            if while_tracing is not None:
                while_tracing()
    reader.join()
    status = process.wait()
    return {
        "status": status,
        "stdout": output[0],
        "stderr": said,
        "seconds": time.monotonic() - started,
        "effective_capabilities": effective,
    }


def effective_capabilities(pid: int) -> str:
    """The capabilities of a process, as the kernel writes them (man 5 proc: CapEff)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("CapEff:")]
    return line.split()[1]


def measure(duration: str, *arguments: str, while_tracing: Callable[[], None] | None = None) -> Report:
    """A run whose result is a document."""
    return runner("--duration", duration, "--output", "json", *arguments, while_tracing=while_tracing)


def first_log_record() -> int:
    """The number of the oldest message that the kernel still has, counted from 0 (man 5 proc: /dev/kmsg)."""
    log = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return int(os.read(log, 8192).split(b",")[1])
    finally:
        os.close(log)


def describe_host() -> Report:
    return {
        "release": os.uname().release,
        "has_cgroup_v2": V2_CONTROLLERS.exists(),
        "controllers": V2_CONTROLLERS.read_text().split() if V2_CONTROLLERS.exists() else [],
        "has_headers": Path(f"/lib/modules/{os.uname().release}/build").exists(),
        "has_tracefs": Path("/sys/kernel/tracing/trace").exists(),
        "dmesg_restrict": int(DMESG_RESTRICT.read_text()),
        "log_reaches_boot": first_log_record() == 0,
        "command_line": Path("/proc/cmdline").read_text().split(),
    }


def planted_loads(*, network_card: bool) -> Report:
    """One connection that was stuck before, one that fills during the window, datagrams and pipes; then all released.

    With `network_card` also one that fills through the driver of a network card.
    """
    truths: Report = {}
    with pod_cgroup() as pod, Planter() as planter, Allocator() as allocator, contextlib.ExitStack() as kept:
        (pod / "cgroup.procs").write_text(str(planter.pid))
        truths["pid"], truths["pipes_pid"], truths["card_pid"] = planter.pid, allocator.pid, os.getpid()
        truths["comm"] = Path(f"/proc/{planter.pid}/comm").read_text().rstrip("\n")
        truths["stuck"] = planter.plant("tcp_small_messages", STUCK_MESSAGES)
        truths["datagrams"] = planter.plant("udp6_large", DATAGRAMS // 10)

        def plant() -> None:
            truths["window"] = planter.plant("tcp_small_messages", WINDOW_MESSAGES)
            truths["window_datagrams"] = planter.plant("udp_small", DATAGRAMS)
            truths["pipes_bytes"] = allocator.do("fill_pipes", PIPE_BYTES)
            if network_card:
                # The driver's buffers from before the window were allocated before it: no trace can show their stack.
                # They are filled first, so everything that the next connection uses was allocated in the window.
                ring = kept.enter_context(echoed(RING_BYTES))
                truths["ring"] = {"inode": os.fstat(ring.fileno()).st_ino, "unread_bytes": RING_BYTES}
                receiver = kept.enter_context(echoed(CARD_BYTES))
                inode = os.fstat(receiver.fileno()).st_ino
                truths["card"] = {"fd": receiver.fileno(), "inode": inode, "unread_bytes": CARD_BYTES}
            # A container's processes usually belong to another user.
            planter.become_user(PLANTER_UID)

        # Exact figures need every event; an emulated CPU would exceed the usual budget.
        report = measure("15s", "--cpu-budget-percent", "100", while_tracing=plant)
        for name in ("stuck", "window", "datagrams", "window_datagrams"):
            truths[name]["inode"] = planter.inode(truths[name]["fd"])
    return report | {"truths": truths}


@contextlib.contextmanager
def echoed(size_bytes: int) -> Iterator[socket.socket]:
    """A connection through the network card with the given number of unread bytes."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 * size_bytes)
        connection.connect((ECHO_ADDRESS, ECHO_PORT))
        connection.sendall(b"e" * size_bytes)
        wait_for(lambda: inq(connection) == size_bytes, "the echo", seconds=ECHO_SECONDS)
        yield connection


def bring_up_network_card() -> Report:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((_SIOCSIFADDR, CARD_ADDRESS), (_SIOCSIFNETMASK, CARD_NETMASK)):
            sockaddr = struct.pack("HH4s", socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(control, request, struct.pack("16s24s", CARD.encode(), sockaddr))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", CARD.encode(), _IFF_UP))
    return {}


@contextlib.contextmanager
def pod_cgroup() -> Iterator[Path]:
    """The cgroup that a kubelet (with the cgroupfs driver) would create for a container, of version 2 or 1."""
    hierarchy = Path("/sys/fs/cgroup") if V2_CONTROLLERS.exists() else Path("/sys/fs/cgroup/memory")
    names = ("kubepods", "burstable", f"pod{POD_UID}", CONTAINER_ID)
    folders = [hierarchy.joinpath(*names[:depth]) for depth in range(1, len(names) + 1)]
    made = [folder for folder in folders if not folder.exists()]
    folders[-1].mkdir(parents=True, exist_ok=True)
    try:
        yield folders[-1]
    finally:
        for folder in reversed(made):
            folder.rmdir()


def slab_census() -> Report:
    """What the census of slabs finds of planted datagrams, and what the kernel's own files say."""
    script = Path(__file__).with_name("guest_slab_census.py")
    made = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if made.returncode:
        raise RuntimeError(made.stderr)
    found: Report = json.loads(made.stdout)
    return found


def mounted_over(path: str, do: Callable[[], Report]) -> Report:
    """Run an action while an empty folder covers the folder `path`."""
    empty = Path("/tmp/empty")
    empty.mkdir(exist_ok=True)
    if _libc.mount(str(empty).encode(), path.encode(), None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), f"mount over {path}")
    try:
        return do()
    finally:
        _libc.umount2(path.encode(), 0)


def without_btf() -> Report:
    return mounted_over("/sys/kernel/btf", lambda: measure("1s"))


def without_kpageflags() -> Report:
    """A /proc of links to the real one's entries, without this one, as with CONFIG_PROC_PAGE_MONITOR=n."""
    with tempfile.TemporaryDirectory() as proc:
        for entry in Path("/proc").iterdir():
            if not entry.name.startswith("kpage"):
                (Path(proc) / entry.name).symlink_to(entry)
        return measure("5s", "--proc", proc)


def locked_for_integrity_without_kpageflags() -> Report:
    lock_down("integrity")
    return without_kpageflags()


def locked_for_confidentiality() -> Report:
    lock_down("confidentiality")
    return runner("--preflight")


def lock_down(level: str) -> None:
    """Lock the kernel down like the boot parameter lockdown=, which only a reboot undoes (kernel_lockdown(7))."""
    Path("/sys/kernel/security/lockdown").write_text(level)


def without_rights() -> Report:
    return runner("--preflight", capabilities=None, user=65534, group=65534, extra_groups=[])


def with_one_capability_less() -> Report:
    """The results of preflight without each of the capabilities."""
    return {
        name: runner("--preflight", capabilities=[one for one in RUNNER_CAPABILITIES if one != name])
        for name in RUNNER_CAPABILITIES
    }


def with_bpf_denied_by_seccomp() -> Report:
    return runner("--check", "AllocPageTrace", "--check", "SocketQueues", preexec_fn=deny_bpf)


def deny_bpf() -> None:
    """Make bpf(2) fail with EPERM from now on, like a container's seccomp profile (seccomp(2))."""

    def step(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = b"".join(
        (
            step(0x20, 0, 0, 0),  # load the system call's number
            step(0x15, 0, 1, _SYS_BPF),  # equal: continue, otherwise skip one
            step(0x06, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
            step(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer)), 16)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0)):
        if _libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


Steps = dict[str, Callable[[], Report]]


def steps(*, own_kernel: bool) -> Steps:
    """The steps, in this order."""
    first: Steps = {
        "host": describe_host,
        "preflight": lambda: runner("--preflight"),
        "planted": functools.partial(planted_loads, network_card=not own_kernel),
        "slab census": slab_census,
        "no BTF": without_btf,
        "no rights": without_rights,
        "one capability less": with_one_capability_less,
        "no bpf(2)": with_bpf_denied_by_seccomp,
    }
    if own_kernel:
        return first | {"no page flags": without_kpageflags}
    last: Steps = {  # the first of these cannot be undone
        "no page flags": locked_for_integrity_without_kpageflags,
        "confidentiality": locked_for_confidentiality,
    }
    return {"network card": bring_up_network_card} | first | last


def main(results: Path, *, own_kernel: bool) -> None:
    reports: Report = {}
    if not own_kernel:
        KPTR_RESTRICT.write_text("2")  # as on hardened nodes: names must not depend on it
        DMESG_RESTRICT.write_text("1")
    for name, do in steps(own_kernel=own_kernel).items():
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        try:
            reports[name] = do()
        except Exception:
            reports[name] = {"error": traceback.format_exc()}
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
        for _, line in reports[name].get("stderr", []):
            print(f"  {line}", flush=True)
    text = json.dumps(reports).encode()
    results.write_bytes(struct.pack("<Q", len(text)) + text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), own_kernel="--own-kernel" in sys.argv[2:])
