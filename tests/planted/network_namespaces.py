"""Network namespaces: one that only what a process in it left behind keeps, and one with very many routes.

The first has no process, fd or mount. A holder has the other end of its network device; when it ends, so does the
namespace: see `zombie`.
"""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from planted.held_by_fd import enter_own_mounts
from planted.sockets.common import MIB, Truth, libc, outq
from planted.sockets.network import enter_own_network, ip

_TESTS = Path(__file__).parents[1]
_HERE, _THERE = "10.213.7.1", "10.213.7.2"
_PACKETS, _PACKET_BYTES = 40, 1_000
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_MS_BIND = 4096


@contextlib.contextmanager
def zombie(kind: str) -> Iterator[Truth]:
    """A zombie namespace, `kind` "tcp" or "packets", with its truth: `inode`, and what keeps it.

    "tcp": a connection that was closed with `unsent_bytes` for a peer that does not read. When the holder ends, its
    end of the connection is reset. "packets": `packets` in the queue of a device that is almost standing still, with
    `packet_bytes` in all. When the holder ends, the device is removed.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "planted.network_namespaces", kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=_TESTS,
    ) as holder:
        try:
            assert holder.stdout is not None
            yield json.loads(holder.stdout.readline())
        finally:
            holder.kill()


def routes(kept: ExitStack, amount: int) -> Truth:
    """A load for `planted.child`: so many IPv6 routes in a namespace of its own, as a network plugin leaks them.

    `slab_bytes`: by slab cache, of those caches that got an object or more for each route. Caches of objects of one
    size may share a name. The namespace ends with the child, and its routes with it.
    """
    enter_own_network()
    ip("link", "add", "planted0", "type", "veth", "peer", "name", "planted1")
    for device in ("planted0", "planted1"):
        ip("link", "set", device, "up")
    before = _slab_objects()
    lines = "".join(f"route add fd00:{n >> 16:x}:{n & 0xFFFF:x}::/64 dev planted0\n" for n in range(amount))
    subprocess.run(["ip", "-6", "-batch", "-"], input=lines, text=True, check=True)
    grown = {
        name: (objects - before.get(name, (0, 0))[0], object_bytes)
        for name, (objects, object_bytes) in _slab_objects().items()
    }
    # Free objects of a cache are used first: up to a tenth may have been there.
    return {"slab_bytes": {name: new * size for name, (new, size) in grown.items() if new >= 0.9 * amount}}


def idle_namespaces(kept: ExitStack, amount: int) -> Truth:
    """A load for `planted.child`: so many namespaces without processes, each kept by a mount, with a pair of devices.

    No other process sees the mounts; they end with the child.
    """
    folder = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="planted-")))
    enter_own_mounts()
    for number in range(amount):
        enter_own_network()
        ip("link", "add", "planted0", "up", "type", "veth", "peer", "name", "planted1")
        ip("link", "set", "planted1", "up")
        name = folder / f"namespace-{number}"
        name.touch()
        if libc.mount(b"/proc/thread-self/ns/net", bytes(name), None, _MS_BIND, None):
            raise OSError(ctypes.get_errno(), "mount a network namespace")
        kept.callback(libc.umount2, bytes(name), 0)
    enter_own_network()
    return {"namespaces": amount}


def _slab_objects() -> dict[str, tuple[int, int]]:
    """Number of used objects and the bytes of each, by slab cache (man 5 slabinfo)."""
    lines = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()[2:]]
    return {name: (int(used), int(object_bytes)) for name, used, _, object_bytes, *_ in lines}


def network_namespace() -> int:
    """The inode of the network namespace of this process."""
    return Path("/proc/self/ns/net").stat().st_ino


def _hold(kind: str) -> None:
    """In the holder: start a process in another namespace, connect both, and stay when it has exited."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    enter_own_network()
    listener = socket.create_server(("0.0.0.0", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    port = listener.getsockname()[1]
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if not pid:
        enter_own_network()
        for which in ("all", "default"):  # it would send packets of its own
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
        theirs.send(b"entered")
        theirs.recv(64)
        theirs.send(json.dumps(_LEAVE[kind](port) | {"inode": network_namespace()}).encode())
        os._exit(0)
    ours.recv(64)
    ip("link", "add", "planted0", "type", "veth", "peer", "name", "planted1", "netns", str(pid))
    ip("address", "add", f"{_HERE}/24", "dev", "planted0")
    ip("link", "set", "planted0", "up")
    ours.send(b"connected")
    connections = [listener.accept()] if kind == "tcp" else []
    truth = ours.recv(4096).decode()
    os.waitpid(pid, 0)
    print(truth, flush=True)
    sys.stdin.read()
    del connections


def _leave_connection(port: int) -> Truth:
    _device_up()
    sender = socket.create_connection((_HERE, port))
    sender.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sender.send(b"z" * MIB)
    before = -1
    while before != outq(sender):  # until the peer takes no more
        before = outq(sender)
        time.sleep(0.3)
    return {"unsent_bytes": before}


def _leave_packets(port: int) -> Truth:
    _device_up()
    ip("neighbour", "replace", _HERE, "lladdr", "02:00:00:00:00:01", "dev", "planted1", "nud", "permanent")
    limit = ["rate", "8bit", "burst", "2kb", "limit", "10mb"]
    subprocess.run(["tc", "qdisc", "add", "dev", "planted1", "root", "tbf", *limit], check=True)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(_PACKETS):
            sender.sendto(b"z" * _PACKET_BYTES, (_HERE, port))
    shown = subprocess.run(
        ["tc", "-json", "-s", "qdisc", "show", "dev", "planted1"], check=True, capture_output=True, text=True
    )
    (qdisc,) = json.loads(shown.stdout)
    return {"packets": qdisc["qlen"], "packet_bytes": qdisc["backlog"]}


def _device_up() -> None:
    ip("address", "add", f"{_THERE}/24", "dev", "planted1")
    ip("link", "set", "planted1", "up")


_LEAVE: dict[str, Callable[[int], Truth]] = {"tcp": _leave_connection, "packets": _leave_packets}

if __name__ == "__main__":
    _hold(sys.argv[1])
