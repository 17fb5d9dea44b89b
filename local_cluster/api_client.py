"""A minimal Kubernetes client that checks whether the cluster is ready."""

import http.client
import json
import ssl
from typing import Any

from local_cluster.certificates import API_PORT, Pki


class ApiClient:
    """Reads from the API server as the cluster's admin."""

    def __init__(self, pki: Pki) -> None:
        self._address = pki.network.node_address
        self._tls = ssl.create_default_context(cafile=str(pki.certificate("ca")))
        self._tls.load_cert_chain(pki.certificate("admin"), pki.key("admin"))

    def get(self, path: str) -> bytes | None:
        """The body of a successful response; None if there is no response or an error."""
        connection = http.client.HTTPSConnection(self._address, API_PORT, context=self._tls, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return body if response.status == http.HTTPStatus.OK else None

    def is_ready(self) -> bool:
        """Whether the API server reports that it is ready."""
        return self.get("/readyz") is not None

    def exists(self, path: str) -> bool:
        """Whether the object at `path` exists."""
        return self.get(path) is not None

    def node_is_ready(self, name: str) -> bool:
        """Whether the node exists and its Ready condition is True."""
        body = self.get(f"/api/v1/nodes/{name}")
        node: dict[str, Any] = json.loads(body) if body else {}
        conditions = node.get("status", {}).get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)
