"""The operator's requests, counted by the API server's audit log."""

import json
from collections import Counter
from pathlib import Path

from support.control_plane import ControlPlane

OPERATOR = "system:serviceaccount:memdiag-system:memdiag-operator"
POLICY = f"""\
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
  - level: Metadata
    users: ["{OPERATOR}"]
    omitStages: [RequestReceived]
  - level: None
"""


class AuditLog:
    """The operator's requests, as recorded by the API server."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def position(self) -> int:
        """The current length of the log."""
        return self._path.stat().st_size if self._path.exists() else 0

    def requests(self, start: int) -> Counter[str]:
        """The requests after position `start`: verb and resource, watches when they start."""
        found: Counter[str] = Counter()
        with self._path.open("rb") as log:
            log.seek(start)
            for line in log:
                entry = json.loads(line)
                reference = entry.get("objectRef", {})
                resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
                is_watch = entry["verb"] == "watch"
                if is_watch == (entry["stage"] == "ResponseStarted"):
                    found[f"{entry['verb']} {resource}"] += 1
        return found


def start(plane: ControlPlane, folder: Path) -> AuditLog:
    """Restart the API server with an audit log of the operator's requests in `folder`."""
    policy, log = folder / "policy.yaml", folder / "audit.log"
    policy.write_text(POLICY)
    plane.restart("kube-apiserver", f"--audit-policy-file={policy}", f"--audit-log-path={log}")
    return AuditLog(log)
