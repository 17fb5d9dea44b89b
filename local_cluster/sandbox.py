"""The namespaces a cluster runs in: a network and a mount namespace that live as long as its processes.

Network: one veth pair to the machine and no default route, so nothing leaves the machine, and the machine's own
routes and firewall are not changed. Mounts: the node has its own /run, /var/lib and /var/log (kubelet, containerd and
CNI have paths there that cannot be configured), so two clusters do not conflict, and all mounts disappear with the last
process. A sleeping process keeps both namespaces open.
"""

import ipaddress
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from local_cluster.cgroups import Cgroup
from local_cluster.shell import run
from local_cluster.steps import StepError

# 198.18.0.0/15 is reserved for tests between separate networks (RFC 2544), so it is not used as a real network.
_TEST_NETWORK = ipaddress.IPv4Network("198.18.0.0/16")
SLOTS = 200
POD_NETWORK = "10.244.0.0/24"
SERVICE_NETWORK = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
# A node in QEMU: its pods, and the link between it and the first node.
GUEST_POD_NETWORK = "10.244.1.0/24"
GUEST_GATEWAY = "10.245.0.1"
GUEST_ADDRESS = "10.245.0.2"
GUEST_INTERFACE = "guest0"
PRIVATE_FOLDERS = ("/run", "/var/lib", "/var/log")
NODE_INTERFACE = "eth0"


@dataclass(frozen=True)
class Network:
    """The addresses of the cluster in slot `slot` of the machine; each cluster has its own slot."""

    slot: int

    @property
    def machine_interface(self) -> str:
        """The machine's end of the veth pair."""
        return f"memdiag{self.slot}"

    @property
    def subnet(self) -> ipaddress.IPv4Network:
        """The /24 between the machine and the node."""
        return ipaddress.IPv4Network((int(_TEST_NETWORK.network_address) + 256 * self.slot, 24))

    @property
    def node_address(self) -> str:
        """The address of the node, on which the API server listens."""
        return str(self.subnet[1])

    @property
    def machine_address(self) -> str:
        """The address of the machine as seen by the node."""
        return str(self.subnet[254])


def free_slot(taken: set[int]) -> int:
    """The first slot that no cluster has taken and whose interface and subnet the machine does not use."""
    interfaces = {entry["ifname"] for entry in _ip_json("link")}
    routes = [_destination(entry["dst"]) for entry in _ip_json("route")]
    for slot in sorted(set(range(SLOTS)) - taken):
        network = Network(slot)
        used = any(route is not None and route.overlaps(network.subnet) for route in routes)
        if network.machine_interface not in interfaces and not used:
            return slot
    raise StepError(
        "no free network for another cluster",
        remedy="list the clusters with `python3 -m local_cluster status` and take some down",
    )


@dataclass(frozen=True)
class Sandbox:
    """Open namespaces, kept by the process `holder_pid`."""

    holder_pid: int

    def enter(self) -> list[str]:
        """The prefix of a command that runs it inside.

        Not `ip netns exec`, which mounts a new /sys and so hides the cgroups.
        """
        return ["nsenter", f"--target={self.holder_pid}", "--mount", "--net", "--"]

    def run(self, *command: str | Path) -> str:
        """Run a command inside and wait until it exits."""
        return run([*self.enter(), *command])


def open_sandbox(cgroup: Cgroup, network: Network, private: Path) -> Sandbox:
    """Create the namespaces; the node's own folders are stored below `private`."""
    sandbox = Sandbox(_start_holder(cgroup))
    _connect(sandbox, network)
    _hide_machine_folders(sandbox, private)
    return sandbox


def connect_guest(sandbox: Sandbox) -> None:
    """Create the tap device of a guest and the route to its pods; both disappear with the namespace."""
    sandbox.run("ip", "tuntap", "add", GUEST_INTERFACE, "mode", "tap")
    sandbox.run("ip", "address", "add", f"{GUEST_GATEWAY}/24", "dev", GUEST_INTERFACE)
    sandbox.run("ip", "link", "set", GUEST_INTERFACE, "up")
    sandbox.run("ip", "route", "add", GUEST_POD_NETWORK, "via", GUEST_ADDRESS)


def remove_machine_interface(network: Network) -> None:
    """Delete the veth pair if it exists; the kernel also deletes it some time after the namespace is gone."""
    if any(entry["ifname"] == network.machine_interface for entry in _ip_json("link")):
        subprocess.run(["ip", "link", "delete", network.machine_interface], capture_output=True, check=False)


def _start_holder(cgroup: Cgroup) -> int:
    holder = subprocess.Popen(
        [*cgroup.enter(), "unshare", "--mount", "--propagation=slave", "--net", "sleep", "infinity"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 10
    while Path(f"/proc/{holder.pid}/comm").read_text() != "sleep\n":  # exec happens after both namespaces were created
        if holder.poll() is not None or time.monotonic() > deadline:
            raise StepError(
                "cannot create a network namespace and a mount namespace",
                remedy="run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
            )
        time.sleep(0.005)
    return holder.pid


def _connect(sandbox: Sandbox, network: Network) -> None:
    outside = network.machine_interface
    pair = ["type", "veth", "peer", "name", NODE_INTERFACE, "netns", str(sandbox.holder_pid)]
    run(["ip", "link", "add", outside, *pair])
    run(["ip", "address", "add", f"{network.machine_address}/24", "dev", outside])
    run(["ip", "link", "set", outside, "up"])
    sandbox.run("ip", "link", "set", "lo", "up")
    sandbox.run("ip", "address", "add", f"{network.node_address}/24", "dev", NODE_INTERFACE)
    sandbox.run("ip", "link", "set", NODE_INTERFACE, "up")
    # A service address needs a route before kube-proxy's rules rewrite it.
    sandbox.run("ip", "route", "add", SERVICE_NETWORK, "dev", NODE_INTERFACE)
    sandbox.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _hide_machine_folders(sandbox: Sandbox, private: Path) -> None:
    # Shared within the namespace, so that mounts of pods with mountPropagation work.
    sandbox.run("mount", "--make-rshared", "/")
    for folder in PRIVATE_FOLDERS:
        if private.is_relative_to(folder):
            raise StepError(
                f"the state folder {private} is below {folder}, which the node replaces with its own",
                remedy="set XDG_STATE_HOME to a folder elsewhere",
            )
        own = private / folder.lstrip("/")
        own.mkdir(parents=True)
        sandbox.run("mount", "--bind", own, folder)


def _ip_json(what: str) -> list[dict[str, str]]:
    listing: list[dict[str, str]] = json.loads(run(["ip", "-json", what, "show"]) or "[]")
    return listing


def _destination(text: str) -> ipaddress.IPv4Network | None:
    """The destination network of a route; None for the default route, which overlaps everything."""
    return None if text == "default" else ipaddress.IPv4Network(text, strict=False)
