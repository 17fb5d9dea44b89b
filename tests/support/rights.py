"""The rights of a token, found by trying every verb on every resource that the API server serves."""

import base64
import json
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import urllib3
import yaml

from support.cluster import TestCluster

CLUSTER = "the cluster"
EVERYWHERE = "all namespaces"
NO_SUCH_OBJECT = "no-such-object"
ATTEMPTS = 60
_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE", "deletecollection": "DELETE"}
_TYPES = {"PATCH": "application/merge-patch+json"}


class Resource(NamedTuple):
    """A resource or subresource as discovery lists it."""

    path: str
    """`/api/v1` or `/apis/GROUP/VERSION`."""
    name: str
    """`pods`, `pods/log`."""
    is_namespaced: bool
    verbs: tuple[str, ...]

    @property
    def full_name(self) -> str:
        """The name with its group, as in kubectl: `deployments.apps`, `memorydiagnoses.memdiag.dev/status`."""
        parts = self.path.split("/")
        name, _, subresource = self.name.partition("/")
        group = f".{parts[2]}" if parts[1] == "apis" else ""
        return f"{name}{group}/{subresource}" if subresource else f"{name}{group}"


class Right(NamedTuple):
    """A verb on a resource in a namespace, in all of them, or in the cluster."""

    resource: str
    place: str
    verb: str


def served_resources(cluster: TestCluster) -> list[Resource]:
    """All resources that the API server serves."""
    groups = json.loads(cluster.kubectl("get", "--raw", "/apis"))["groups"]
    paths = ["/api/v1", *(f"/apis/{version['groupVersion']}" for group in groups for version in group["versions"])]
    return [
        Resource(path, one["name"], one["namespaced"], tuple(one["verbs"]))
        for path in paths
        for one in json.loads(cluster.kubectl("get", "--raw", path))["resources"]
    ]


class Attempts:
    """Makes requests with a token. Nothing is changed: writes are dry runs on an object that does not exist."""

    def __init__(self, kubeconfig: Path) -> None:
        document = yaml.safe_load(kubeconfig.read_text())
        place = document["clusters"][0]["cluster"]
        self._server = place["server"]
        self._token = document["users"][0]["user"]["token"]
        authority = kubeconfig.with_suffix(".ca")
        authority.write_bytes(_authority(place))
        self._pool = urllib3.PoolManager(maxsize=8, ca_certs=str(authority), retries=False)
        self.count = 0

    def rights(self, resources: Iterable[Resource], namespaces: Iterable[str]) -> set[Right]:
        """The rights that are not refused; a right in all namespaces is not listed again for each of them."""
        wanted = [
            (resource, place, verb)
            for resource in resources
            for place in ([*namespaces, EVERYWHERE] if resource.is_namespaced else [CLUSTER])
            for verb in resource.verbs
            if place != EVERYWHERE or verb in ("list", "watch")
        ]
        self.count += len(wanted)
        with ThreadPoolExecutor(8) as executor:
            answers = executor.map(lambda one: self.status(*one), wanted)
        granted = {
            Right(resource.full_name, place, verb)
            for (resource, place, verb), status in zip(wanted, answers, strict=True)
            if status != HTTPStatus.FORBIDDEN
        }
        return {
            right
            for right in granted
            if right.place in (CLUSTER, EVERYWHERE) or right._replace(place=EVERYWHERE) not in granted
        }

    def status(self, resource: Resource, place: str, verb: str) -> int:
        """The status code of the response to a request."""
        name, _, subresource = resource.name.partition("/")
        parts = [resource.path, *([] if place in (CLUSTER, EVERYWHERE) else ["namespaces", place]), name]
        if subresource or verb in ("get", "update", "patch", "delete"):
            parts.append(NO_SUCH_OBJECT)
        if subresource:
            parts.append(subresource)
        method = _METHODS.get(verb, "GET")
        query = {"list": "limit=1", "watch": "watch=true&timeoutSeconds=1"}.get(verb, "")
        query = query or ("dryRun=All" if method != "GET" else "")
        return self.request(method, f"{'/'.join(parts)}?{query}")

    def request(self, method: str, path: str, headers: dict[str, str] | None = None) -> int:
        """The status code of one request, which is repeated if the API server is busy."""
        status = HTTPStatus.TOO_MANY_REQUESTS
        for _ in range(ATTEMPTS):
            answer = self._pool.request(
                method,
                self._server + path,
                headers={
                    "Authorization": f"Bearer {self._token}",
                    "Content-Type": _TYPES.get(method, "application/json"),
                    **(headers or {}),
                },
                body=None if method == "GET" else b"{}",
            )
            status = HTTPStatus(answer.status)
            if status != HTTPStatus.TOO_MANY_REQUESTS:
                break
            time.sleep(0.5)
        # Neither is about a right.
        assert status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS), path
        return status


def grouped(rights: Iterable[Right]) -> dict[tuple[str, str], set[str]]:
    """Verbs by resource and place."""
    found: dict[tuple[str, str], set[str]] = {}
    for right in rights:
        found.setdefault((right.resource, right.place), set()).add(right.verb)
    return found


class Rule(NamedTuple):
    """A rule of a role in the manifests, and the comment above it."""

    role: str
    place: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    reason: str


def documented_rules(path: Path) -> Iterator[Rule]:
    """The rules of a file of roles; a rule without a comment has an empty reason."""
    for document in path.read_text().split("\n---\n"):
        role = yaml.safe_load(document)
        reasons = _reasons(document)
        for rule, reason in zip(role.get("rules", []), reasons, strict=True):
            (group,) = rule["apiGroups"]
            names = tuple(_with_group(name, group) for name in rule["resources"])
            place = role["metadata"].get("namespace", CLUSTER)
            yield Rule(role["metadata"]["name"], place, names, tuple(rule["verbs"]), reason)


def _reasons(document: str) -> list[str]:
    reasons: list[str] = []
    comment: list[str] = []
    for line in document.splitlines():
        if line.startswith("  #"):
            comment.append(line.strip(" #"))
        elif line.startswith("  - apiGroups"):
            reasons.append(" ".join(comment))
        else:
            comment = []
    return reasons


def _with_group(name: str, group: str) -> str:
    resource, _, subresource = name.partition("/")
    full = f"{resource}.{group}" if group else resource
    return f"{full}/{subresource}" if subresource else full


def _authority(place: dict[str, str]) -> bytes:
    if "certificate-authority-data" in place:
        return base64.b64decode(place["certificate-authority-data"])
    return Path(place["certificate-authority"]).read_bytes()
