"""etcd and the Kubernetes control plane."""

from pathlib import Path

from local_cluster.api_client import ApiClient
from local_cluster.certificates import API_PORT, Pki
from local_cluster.daemons import Daemons
from local_cluster.sandbox import SERVICE_NETWORK

ETCD_URL = "http://127.0.0.1:2379"


def start_api_server(daemons: Daemons, binaries: Path, pki: Pki, etcd_data: Path, *, alone: bool) -> None:
    """Start etcd and kube-apiserver and wait until the API is ready.

    `alone`: there will be no controller manager to create the service accounts that pods must have, so pods are
    admitted without one.
    """
    daemons.start("etcd", _etcd(binaries, etcd_data))
    command = _kube_apiserver(binaries, pki)
    if alone:
        command.append("--disable-admission-plugins=ServiceAccount")
    daemons.start("kube-apiserver", command)
    daemons.wait("API server ready", ApiClient(pki).is_ready, log="kube-apiserver")


def start_controllers(daemons: Daemons, binaries: Path, pki: Pki) -> None:
    """Start the controller manager and the scheduler; they connect by themselves."""
    daemons.start(
        "kube-controller-manager",
        [
            binaries / "kube-controller-manager",
            f"--kubeconfig={pki.kubeconfig('controller-manager')}",
            f"--service-account-private-key-file={pki.key('service-account')}",
            f"--root-ca-file={pki.certificate('ca')}",
            "--use-service-account-credentials",
            # All controllers start at the same time here: the default request limits would delay them for seconds.
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )
    scheduler = pki.kubeconfig("scheduler")
    daemons.start(
        "kube-scheduler",
        [
            binaries / "kube-scheduler",
            f"--kubeconfig={scheduler}",
            f"--authentication-kubeconfig={scheduler}",
            f"--authorization-kubeconfig={scheduler}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        ],
    )


def wait_for_controllers(daemons: Daemons, pki: Pki) -> None:
    """Wait until a pod can be created: its namespace then has a service account."""
    path = "/api/v1/namespaces/default/serviceaccounts/default"
    daemons.wait("controllers running", lambda: ApiClient(pki).exists(path), log="kube-controller-manager")


def _etcd(binaries: Path, data: Path) -> list[str | Path]:
    return [
        binaries / "etcd",
        f"--data-dir={data}",
        f"--listen-client-urls={ETCD_URL}",
        f"--advertise-client-urls={ETCD_URL}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",  # the cluster does not survive a crash of the machine anyway
    ]


def _kube_apiserver(binaries: Path, pki: Pki) -> list[str | Path]:
    return [
        binaries / "kube-apiserver",
        f"--etcd-servers={ETCD_URL}",
        "--bind-address=0.0.0.0",
        f"--advertise-address={pki.network.node_address}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={pki.certificate('apiserver')}",
        f"--tls-private-key-file={pki.key('apiserver')}",
        f"--client-ca-file={pki.certificate('ca')}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki.public_key}",
        f"--service-account-signing-key-file={pki.key('service-account')}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-certificate-authority={pki.certificate('ca')}",
        f"--kubelet-client-certificate={pki.certificate('kubelet-client')}",
        f"--kubelet-client-key={pki.key('kubelet-client')}",
        "--kubelet-preferred-address-types=InternalIP",
    ]
