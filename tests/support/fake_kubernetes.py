"""An in-memory API server in place of the client's requests: for unit tests of the operator's reads and writes."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kubernetes import client

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_api.history import RunSummary
from memdiag_operator.cluster.client import KubernetesClient, Listing
from memdiag_operator.cluster.clock import ServerClock
from memdiag_operator.cluster.errors import AlreadyExistsError, ConflictError, NotFoundError
from memdiag_operator.decide.stored_reports import StoredReport
from memdiag_operator.kube.objects import Diagnosis, Event, Node, ObjectMeta, Pod
from memdiag_operator.results.history import history_of_report
from support.kubernetes_objects import NOW, timestamp


class FakeKubernetes(KubernetesClient):
    """Stores objects, records every request as `METHOD NAME`, and fails if a test says so."""

    def __init__(
        self, *, diagnoses: Iterable[Diagnosis] = (), nodes: Iterable[Node] = (), pods: Iterable[Pod] = ()
    ) -> None:
        super().__init__(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")))
        self.clock = ServerClock(wall_clock=NOW.timestamp)
        self.diagnoses = {one.metadata.name: one for one in diagnoses}
        self.nodes = {one.metadata.name: one for one in nodes}
        self.pods = {one.metadata.name: one for one in pods}
        self.logs: dict[str, bytes] = {}
        self.events: list[dict[str, Any]] = []
        self.reports: tuple[StoredReport, ...] = ()
        self.histories: dict[str, bytes] = {}
        """By name: reports with their content."""
        self.requests: list[str] = []
        self._failures: defaultdict[str, list[Exception]] = defaultdict(list)
        self._before: dict[str, Callable[[], object]] = {}

    def fail(self, method: str, *errors: Exception) -> None:
        """Make the next calls of `method` raise these errors, one each."""
        self._failures[method] += errors

    def before(self, method: str, action: Callable[[], object]) -> None:
        """Run `action` before each response of `method`, in the caller's thread."""
        self._before[method] = action

    def asked(self, method: str) -> list[str]:
        """The names in all requests of `method`."""
        return [one.partition(" ")[2] for one in self.requests if one.split(" ")[0] == method]

    def _asked(self, method: str, name: str = "") -> None:
        self.requests.append(f"{method} {name}".strip())
        if action := self._before.get(method):
            action()
        if self._failures[method]:
            raise self._failures[method].pop(0)

    def change(self, name: str, **status: Any) -> None:
        """Change a diagnosis like another client."""
        known = self.diagnoses[name]
        self._store(known, known.status.model_copy(update=status))

    def _store(self, known: Diagnosis, status: MemoryDiagnosisStatus) -> Diagnosis:
        meta = known.metadata
        later = meta.model_copy(update={"resource_version": str(int(meta.resource_version) + 1)})
        # As it comes back from JSON.
        stored = Diagnosis.model_validate(
            {
                **known.model_dump(by_alias=True, exclude_unset=True),
                "metadata": later,
                "status": status.to_json_object(),
            }
        )
        self.diagnoses[meta.name] = stored
        return stored

    def _current(self, meta: ObjectMeta) -> Diagnosis:
        found = self.diagnoses.get(meta.name)
        if found is None:
            raise NotFoundError(meta.name)
        if (found.metadata.uid, found.metadata.resource_version) != (meta.uid, meta.resource_version):
            raise ConflictError(meta.name)
        return found

    def read_diagnosis(self, name: str) -> Diagnosis:
        self._asked("read_diagnosis", name)
        if name not in self.diagnoses:
            raise NotFoundError(name)
        return self.diagnoses[name]

    def list_diagnoses(self) -> Iterator[Listing[Diagnosis]]:
        self._asked("list_diagnoses")
        return iter([Listing(tuple(self.diagnoses.values()), "1")])

    def write_status(self, diagnosis: ObjectMeta, status: MemoryDiagnosisStatus) -> Diagnosis:
        self._asked("write_status", diagnosis.name)
        return self._store(self._current(diagnosis), status)

    def confirm_version(self, diagnosis: ObjectMeta) -> None:
        self._asked("confirm_version", diagnosis.name)
        self._current(diagnosis)

    def delete_diagnosis(self, diagnosis: ObjectMeta) -> None:
        self._asked("delete_diagnosis", diagnosis.name)
        del self.diagnoses[diagnosis.name]

    def create_report(self, manifest: dict[str, Any]) -> None:
        self._asked("create_report", manifest["metadata"]["name"])

    def read_history(self, report: str, node_name: str) -> tuple[RunSummary, ...]:
        self._asked("read_history", report)
        if report not in self.histories:
            raise NotFoundError(report)
        return history_of_report(self.histories[report], node_name)

    def list_reports(self) -> Iterator[StoredReport]:
        self._asked("list_reports")
        return iter(self.reports)

    def delete_reports(self, label_selector: str) -> None:
        self._asked("delete_reports", label_selector)

    def read_node(self, name: str) -> Node:
        self._asked("read_node", name)
        if name not in self.nodes:
            raise NotFoundError(name)
        return self.nodes[name]

    def list_nodes(self, label_selector: str) -> tuple[Node, ...]:
        self._asked("list_nodes", label_selector)
        return tuple(self.nodes.values())

    def read_pod(self, namespace: str, name: str) -> Pod:
        self._asked("read_pod", name)
        if name not in self.pods:
            raise NotFoundError(f"{namespace}/{name}")
        return self.pods[name]

    def list_pods(self, namespace: str, label_selector: str) -> Iterator[Listing[Pod]]:
        del namespace, label_selector
        self._asked("list_pods")
        return iter([Listing(tuple(self.pods.values()), "1")])

    def find_pod(self, namespace: str, name: str) -> Pod | None:
        self._asked("find_pod", f"{namespace}/{name}")
        return self.pods.get(name)

    def list_pods_on_node(self, node_name: str) -> tuple[Pod, ...]:
        self._asked("list_pods_on_node", node_name)
        return tuple(one for one in self.pods.values() if one.spec.node_name == node_name)

    def list_pod_events(self, pod: ObjectMeta) -> tuple[Event, ...]:
        self._asked("list_pod_events", pod.name)
        return (Event(reason="FailedMount"),)

    def create_pod(self, manifest: dict[str, Any]) -> tuple[Pod, dict[str, Any]]:
        meta = manifest["metadata"]
        self._asked("create_pod", meta["name"])
        if meta["name"] in self.pods:
            raise AlreadyExistsError(meta["name"])
        created = json.loads(json.dumps(manifest))
        created["metadata"] |= {"uid": f"uid-of-{meta['name']}", "creationTimestamp": timestamp(NOW)}
        self.pods[meta["name"]] = Pod.model_validate(created)
        return self.pods[meta["name"]], created

    def set_pod_deadline(self, namespace: str, name: str, seconds: int) -> Pod:
        self._asked("set_pod_deadline", name)
        if name not in self.pods:
            raise NotFoundError(f"{namespace}/{name}")
        known = self.pods[name]
        self.pods[name] = known.model_copy(
            update={"spec": known.spec.model_copy(update={"active_deadline_seconds": seconds})}
        )
        return self.pods[name]

    def delete_pod(self, namespace: str, name: str, uid: str, *, force: bool) -> Pod | None:
        del force
        self._asked("delete_pod", name)
        if name not in self.pods:
            raise NotFoundError(f"{namespace}/{name}")
        if self.pods[name].metadata.uid != uid:
            raise ConflictError(name)
        del self.pods[name]
        return None

    def read_log(self, namespace: str, name: str) -> bytes:
        del namespace
        self._asked("read_log", name)
        return self.logs.get(name, b"")

    def create_event(self, manifest: dict[str, Any]) -> None:
        self._asked("create_event", manifest["reason"])
        self.events.append(manifest)
