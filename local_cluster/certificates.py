"""The cluster's certificates and kubeconfig files, created by openssl for each new cluster."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from local_cluster.sandbox import API_SERVICE_ADDRESS, GUEST_ADDRESS, Network
from local_cluster.shell import run

API_PORT = 6443
VALID_DAYS = "365"

# Python 3.13 verifies strictly (RFC 5280): a CA needs keyUsage, a leaf certificate its issuer's key identifier.
_OPENSSL_CONFIG = """\
[req]
distinguished_name = none
prompt = no
[none]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:127.0.0.1, IP:{node}, IP:{guest}, IP:{service}, DNS:localhost, DNS:kubernetes.default.svc
"""


@dataclass(frozen=True)
class Pki:
    """The folder with `NAME.crt`, `NAME.key` and `NAME.kubeconfig`."""

    folder: Path
    network: Network

    def certificate(self, name: str) -> Path:
        """The certificate of `name` (PEM)."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The private key of `name` (PEM)."""
        return self.folder / f"{name}.key"

    def kubeconfig(self, name: str) -> Path:
        """The kubeconfig file of `name`."""
        return self.folder / f"{name}.kubeconfig"

    def create(self, node_name: str) -> None:
        """Create the CA, all certificates and kubeconfig files, and the key that signs service account tokens."""
        self.folder.mkdir(mode=0o700, parents=True)
        config = _OPENSSL_CONFIG.format(
            node=self.network.node_address, guest=GUEST_ADDRESS, service=API_SERVICE_ADDRESS
        )
        self._config.write_text(config)
        self._issue("ca", "/CN=memdiag-local-cluster", "authority", [])
        for name, subject in {
            "apiserver": "/CN=kube-apiserver",
            "admin": "/O=system:masters/CN=admin",
            "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
            "controller-manager": "/CN=system:kube-controller-manager",
            "scheduler": "/CN=system:kube-scheduler",
            "proxy": "/CN=system:kube-proxy",
            "kubelet": f"/O=system:nodes/CN=system:node:{node_name}",
        }.items():
            self._issue(name, subject, "leaf", self._issuer)
        for name in ("admin", "controller-manager", "scheduler", "proxy", "kubelet"):
            self._write_kubeconfig(name)
        run(["openssl", "genpkey", *_KEY_KIND, "-out", self.key("service-account")])
        run(["openssl", "pkey", "-in", self.key("service-account"), "-pubout", "-out", self.public_key])

    def add_node(self, node_name: str) -> None:
        """Create the certificate, key and kubeconfig file of another node, under its name."""
        self._issue(node_name, f"/O=system:nodes/CN=system:node:{node_name}", "leaf", self._issuer)
        self._write_kubeconfig(node_name)

    @property
    def public_key(self) -> Path:
        """The key that verifies service account tokens."""
        return self.folder / "service-account.pub"

    @property
    def _issuer(self) -> list[str | Path]:
        return ["-CA", self.certificate("ca"), "-CAkey", self.key("ca")]

    @property
    def _config(self) -> Path:
        return self.folder / "openssl.cnf"

    def _issue(self, name: str, subject: str, extensions: str, issuer: list[str | Path]) -> None:
        run(["openssl", "genpkey", *_KEY_KIND, "-out", self.key(name)])
        request: list[str | Path] = ["openssl", "req", "-x509", "-new", "-config", self._config]
        request += ["-extensions", extensions, "-days", VALID_DAYS, "-subj", subject]
        request += ["-key", self.key(name), "-out", self.certificate(name)]
        run([*request, *issuer])

    def _write_kubeconfig(self, name: str) -> None:
        # JSON is valid YAML, so kubectl and the clients can read it.
        cluster = {
            "server": f"https://{self.network.node_address}:{API_PORT}",
            "certificate-authority-data": _base64(self.certificate("ca")),
        }
        user = {
            "client-certificate-data": _base64(self.certificate(name)),
            "client-key-data": _base64(self.key(name)),
        }
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "memdiag", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "memdiag", "context": {"cluster": "memdiag", "user": name}}],
            "current-context": "memdiag",
        }
        self.kubeconfig(name).write_text(json.dumps(document, indent=1))


_KEY_KIND = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
