"""The node: containerd, kubelet and kube-proxy."""

import json
from pathlib import Path

from local_cluster import cgroups, containerd
from local_cluster.api_client import ApiClient
from local_cluster.certificates import Pki
from local_cluster.daemons import Daemons
from local_cluster.sandbox import API_SERVICE_ADDRESS, POD_NETWORK

NODE_NAME = "node1"

# Paths as seen by the node: it has its own /run and /var/lib (see sandbox.py).
CONTAINERD_ROOT = Path("/var/lib/containerd")
CONTAINERD_STATE = Path("/run/containerd")
CONTAINERD_SOCKET = CONTAINERD_STATE / "containerd.sock"


def start_containerd(daemons: Daemons, configuration: Path) -> None:
    """Start containerd with a pod network: one veth pair per pod, routed, without masquerading."""
    cni = configuration / "cni"
    write_pod_network(cni, POD_NETWORK)
    file = configuration / "containerd.toml"
    containerd.write_config(file, root=CONTAINERD_ROOT, state=CONTAINERD_STATE, socket=CONTAINERD_SOCKET, cni=cni)
    daemons.start("containerd", ["containerd", f"--config={file}"])


def start_kubelet_and_proxy(daemons: Daemons, binaries: Path, pki: Pki, configuration: Path) -> None:
    """Start kubelet and kube-proxy; containerd must be started and the API ready."""
    enter = daemons.sandbox.enter()
    daemons.wait("containerd ready", lambda: containerd.answers(CONTAINERD_SOCKET, enter), log="containerd")
    file = configuration / "kubelet.json"
    file.write_text(json.dumps(_kubelet_configuration(pki, daemons.cgroup.name), indent=1))
    daemons.start(
        "kubelet",
        [
            binaries / "kubelet",
            f"--config={file}",
            f"--kubeconfig={pki.kubeconfig('kubelet')}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={pki.network.node_address}",
        ],
    )
    daemons.start(
        "kube-proxy",
        [
            binaries / "kube-proxy",
            f"--kubeconfig={pki.kubeconfig('proxy')}",
            "--proxy-mode=nftables",
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={POD_NETWORK}",
            # Do not change the machine's connection tracking limits.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ],
    )


def wait_until_ready(daemons: Daemons, pki: Pki) -> None:
    """Wait until pods can run on the node and reach the API at its service address."""
    client = ApiClient(pki)
    daemons.wait("node Ready", lambda: client.node_is_ready(NODE_NAME), log="kubelet")
    daemons.wait("service addresses routed", lambda: _routes_api_service(daemons), log="kube-proxy")


def _routes_api_service(daemons: Daemons) -> bool:
    return API_SERVICE_ADDRESS in daemons.sandbox.run("nft", "list", "ruleset")


def write_pod_network(folder: Path, subnet: str) -> None:
    """Write the CNI configuration of a node whose pods have addresses in `subnet`."""
    ipam = {"type": "host-local", "subnet": subnet, "routes": [{"dst": "0.0.0.0/0"}]}
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [{"type": "ptp", "ipMasq": False, "ipam": ipam}],
    }
    folder.mkdir(parents=True)
    (folder / "10-pods.conflist").write_text(json.dumps(network, indent=1))


def _kubelet_configuration(pki: Pki, cgroup: str) -> dict[str, object]:
    return {
        **kubelet_settings(ca=pki.certificate("ca"), certificate=pki.certificate("kubelet"), key=pki.key("kubelet")),
        "cgroupRoot": f"/{cgroup}",
        "failCgroupV1": not cgroups.uses_version_1(),
    }


def kubelet_settings(*, ca: Path, certificate: Path, key: Path) -> dict[str, object]:
    """The kubelet configuration that all nodes share; paths are as seen by the node."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "resolvConf": "",  # the cluster has no DNS, and the machine's resolver cannot be reached from it
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": str(certificate),
        "tlsPrivateKeyFile": str(key),
        # Disk usage of the machine is unrelated to this cluster: no eviction and no image removal because of it.
        "evictionHard": {"memory.available": "100Mi"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }
