"""Every request that the operator makes to the API server, one method each; RBAC (manifests/base/rbac) mirrors them.

The official client is synchronous: callers run these methods in threads. Responses are parsed straight from JSON into
the parts that matter, which saves memory on large lists. Each request has its own deadline: the API's
`timeout_seconds` limits only the server (kubernetes-client/python#1402). Every response has a size limit, because nodes
write parts of it: logs, and the status of pods. Every response carries the API server's time.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

import urllib3
from kubernetes import client
from kubernetes import config as kubernetes_config
from pydantic import BeforeValidator, Field, ValidationError

from memdiag_api.diagnosis import API_VERSION, GROUP, VERSION, MemoryDiagnosis, MemoryDiagnosisStatus
from memdiag_api.framing import MAX_LOG_BYTES
from memdiag_api.history import RunSummary
from memdiag_api.report import MemoryDiagnosisReport
from memdiag_operator.cluster.answers import TimedOnceRetry, read_body
from memdiag_operator.cluster.clock import ServerClock
from memdiag_operator.cluster.errors import ConflictError, OversizedError, UnreadableError, translated
from memdiag_operator.cluster.requests import ObservedApiClient, RequestObserver, ignore
from memdiag_operator.decide.stored_reports import StoredReport, stored_report
from memdiag_operator.kube.objects import Diagnosis, Event, KubernetesPart, Node, ObjectMeta, Pod
from memdiag_operator.results.history import history_of_report

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 30
ANSWER_SECONDS = 60
"""For a whole response; READ_TIMEOUT_SECONDS is for the wait for its next bytes."""
MAX_ANSWER_BYTES = 32 * 1024 * 1024
LOG_READ_TIMEOUT_SECONDS = 10
LOG_SECONDS = 20
"""For a whole log, which has up to MAX_LOG_BYTES."""
HISTORY_SECONDS = 2
"""For a report of a former run: a runner starts without its history rather than later."""
MAX_REPORT_BYTES = 2 * 1024 * 1024
PAGE_SIZE = 500
# For all pods of a node together: the node writes their status, up to etcd's limit of 1.5 MiB, and creates mirror pods.
MAX_NODE_PODS_BYTES = 16 * 1024 * 1024
# A diagnosis may have 64 KiB, and takes twenty times that while it is parsed.
DIAGNOSES_PAGE_SIZE = 10
MAX_POD_EVENTS = 50
MAX_POD_EVENTS_BYTES = 1024 * 1024
# A node with many images has 20 KiB and more, and takes about ten times that while it is parsed.
NODES_PAGE_SIZE = 100
CONNECTIONS = 16

ONLY_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
ONLY_METADATA_OF_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

# Events about cluster-scoped objects live here (kubernetes: apiserver validation of involvedObject).
EVENT_NAMESPACE = "default"


class ListMeta(KubernetesPart):
    """metav1.ListMeta."""

    continue_: str = Field(default="", alias="continue")
    resource_version: str = ""


def _readable(items: list[dict[str, Any]]) -> list[Diagnosis]:
    """The diagnoses that this version can parse: one stored by a later version must not hide all others."""
    found: list[Diagnosis] = []
    for item in items:
        try:
            found.append(Diagnosis.model_validate(item))
        except ValidationError as error:
            name = item.get("metadata", {}).get("name")
            logger.warning("ignoring MemoryDiagnosis %s: cannot parse it: %s", name, error)
    return found


class PodList(KubernetesPart):
    """A page of pods."""

    metadata: ListMeta = ListMeta()
    items: tuple[Pod, ...]


class NodeList(KubernetesPart):
    """A page of nodes."""

    metadata: ListMeta = ListMeta()
    items: tuple[Node, ...]


class EventList(KubernetesPart):
    """A page of events."""

    metadata: ListMeta = ListMeta()
    items: tuple[Event, ...]


class PartialObject(KubernetesPart):
    """metav1.PartialObjectMetadata."""

    metadata: ObjectMeta


class PartialObjectList(KubernetesPart):
    """metav1.PartialObjectMetadataList. The API server converts a list into it, and an empty one into `items: null`."""

    metadata: ListMeta = ListMeta()
    items: Annotated[tuple[PartialObject, ...], BeforeValidator(lambda items: items or ())]


class DiagnosisList(KubernetesPart):
    """A page of diagnoses."""

    metadata: ListMeta = ListMeta()
    items: Annotated[tuple[Diagnosis, ...], BeforeValidator(_readable)]


Item = TypeVar("Item")


class Listing(NamedTuple, Generic[Item]):
    """A list or a page of one, and the resource version at which it was read: all pages of a list have the same."""

    items: tuple[Item, ...]
    version: str


class Bounds(NamedTuple):
    """How long a response may take, and how much of it is read."""

    read_timeout_seconds: float
    """For the wait for its next bytes."""
    seconds: float
    """For all of it."""
    size_bytes: int


class KubernetesClient:
    """Requests as the operator's service account, or as the user of the local kubeconfig."""

    def __init__(self, api: client.ApiClient) -> None:
        self._core = client.CoreV1Api(api)
        self._custom = client.CustomObjectsApi(api)
        self.clock = ServerClock()

    @classmethod
    def connect(cls, observe: RequestObserver = ignore) -> "KubernetesClient":
        """Connect with the service account in a pod, otherwise with KUBECONFIG. Raises ConfigException without either.

        `observe` is called for every request, on the thread that made it.
        """
        configuration = client.Configuration()
        try:
            kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call] # untyped there
        except kubernetes_config.ConfigException:
            kubernetes_config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call] # as above
        return cls(ObservedApiClient(configured(configuration), observe))

    def read_diagnosis(self, name: str) -> Diagnosis:
        """One MemoryDiagnosis."""
        answer = self._request(
            f"read MemoryDiagnosis {name}",
            self._custom.get_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosis.PLURAL,
            name,
        )
        return _diagnosis(name, answer)

    def list_diagnoses(self) -> Iterator[Listing[Diagnosis]]:
        """All of them, page by page: together they may be large."""
        return self._pages(
            DiagnosisList,
            "list MemoryDiagnoses",
            self._custom.list_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosis.PLURAL,
            limit=DIAGNOSES_PAGE_SIZE,
        )

    def write_status(self, diagnosis: ObjectMeta, status: MemoryDiagnosisStatus) -> Diagnosis:
        """Replace the status of what was read as `diagnosis`. Raises ConflictError if it has changed since."""
        body = {
            "apiVersion": API_VERSION,
            "kind": MemoryDiagnosis.KIND,
            "metadata": {"name": diagnosis.name, "uid": diagnosis.uid, "resourceVersion": diagnosis.resource_version},
            # Unset fields are omitted, so that a waiting run does not show the zeros of a result.
            "status": _without_empty_lists(
                status.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
            ),
        }
        answer = self._request(
            f"write the status of MemoryDiagnosis {diagnosis.name}",
            self._custom.replace_cluster_custom_object_status,
            GROUP,
            VERSION,
            MemoryDiagnosis.PLURAL,
            diagnosis.name,
            body,
        )
        return _diagnosis(diagnosis.name, answer)

    def confirm_version(self, diagnosis: ObjectMeta) -> None:
        """Check that a MemoryDiagnosis is still what was read as `diagnosis`. Raises ConflictError if it is not."""
        name = diagnosis.name
        found = PartialObject.model_validate_json(
            self._request(
                f"read MemoryDiagnosis {name}",
                self._custom.get_cluster_custom_object,
                GROUP,
                VERSION,
                MemoryDiagnosis.PLURAL,
                name,
                _headers={"Accept": ONLY_METADATA},
            )
        ).metadata
        if (found.uid, found.resource_version) != (diagnosis.uid, diagnosis.resource_version):
            raise ConflictError(f"MemoryDiagnosis {name} has changed since it was read")

    def delete_diagnosis(self, diagnosis: ObjectMeta) -> None:
        """Delete exactly the object that was read as `diagnosis`."""
        self._request(
            f"delete MemoryDiagnosis {diagnosis.name}",
            self._custom.delete_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosis.PLURAL,
            diagnosis.name,
            body=_only(diagnosis.uid),
        )

    def create_report(self, manifest: dict[str, Any]) -> None:
        """Create a MemoryDiagnosisReport."""
        self._request(
            f"create MemoryDiagnosisReport {manifest['metadata']['name']}",
            self._custom.create_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosisReport.PLURAL,
            manifest,
        )

    def read_history(self, report: str, node_name: str) -> tuple[RunSummary, ...]:
        """The earlier runs of a node that one of its reports knows. Raises UnreadableError if they are malformed."""
        action = f"read MemoryDiagnosisReport {report}"
        bounds = Bounds(HISTORY_SECONDS, HISTORY_SECONDS, MAX_REPORT_BYTES)
        answer = self._body(
            action,
            self._custom.get_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosisReport.PLURAL,
            report,
            bounds=bounds,
        )
        try:
            return history_of_report(answer, node_name)
        except ValueError as error:
            raise UnreadableError(f"cannot {action}: its history is malformed") from error

    def list_reports(self) -> Iterator[StoredReport]:
        """The metadata of every MemoryDiagnosisReport; the content of each may have 256 KiB."""
        pages = self._pages(
            PartialObjectList,
            "list MemoryDiagnosisReports",
            self._custom.list_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosisReport.PLURAL,
            headers={"Accept": ONLY_METADATA_OF_LIST},
        )
        return (stored_report(item.metadata) for page in pages for item in page.items)

    def delete_reports(self, label_selector: str) -> None:
        """Delete all reports that have these labels."""
        self._request(
            "delete MemoryDiagnosisReports",
            self._custom.delete_collection_cluster_custom_object,
            GROUP,
            VERSION,
            MemoryDiagnosisReport.PLURAL,
            label_selector=label_selector,
        )

    def read_node(self, name: str) -> Node:
        """One node."""
        return Node.model_validate_json(self._request(f"read node {name}", self._core.read_node, name))

    def read_pod(self, namespace: str, name: str) -> Pod:
        """One pod."""
        answer = self._request(f"read pod {namespace}/{name}", self._core.read_namespaced_pod, name, namespace)
        return Pod.model_validate_json(answer)

    def list_pods(self, namespace: str, label_selector: str) -> Iterator[Listing[Pod]]:
        """The pods of a namespace that have these labels, page by page."""
        return self._pages(
            PodList,
            f"list pods in {namespace}",
            self._core.list_namespaced_pod,
            namespace,
            label_selector=label_selector,
        )

    def find_pod(self, namespace: str, name: str) -> Pod | None:
        """One pod of any namespace, if it exists. By a list, which the operator needs for a node's pods anyway."""
        found = self._whole(
            PodList,
            f"find pod {namespace}/{name}",
            self._core.list_namespaced_pod,
            namespace,
            field_selector=f"metadata.name={name}",
        )
        return found[0] if found else None

    def list_nodes(self, label_selector: str) -> tuple[Node, ...]:
        """The nodes that have these labels."""
        return self._whole(
            NodeList, "list nodes", self._core.list_node, label_selector=label_selector, limit=NODES_PAGE_SIZE
        )

    def list_pods_on_node(self, node_name: str) -> tuple[Pod, ...]:
        """The pods that are bound to a node, of all namespaces."""
        return self._whole(
            PodList,
            f"list the pods on node {node_name}",
            self._core.list_pod_for_all_namespaces,
            field_selector=f"spec.nodeName={node_name}",
            max_bytes=MAX_NODE_PODS_BYTES,
        )

    def list_pod_events(self, pod: ObjectMeta) -> tuple[Event, ...]:
        """The first events about a pod: a kubelet repeats few, a hostile one may write any number."""
        answer = self._request(
            f"list the events of pod {pod.namespace}/{pod.name}",
            self._core.list_namespaced_event,
            pod.namespace,
            field_selector=f"involvedObject.uid={pod.uid}",
            limit=MAX_POD_EVENTS,
            max_bytes=MAX_POD_EVENTS_BYTES,
        )
        return EventList.model_validate_json(answer).items

    def create_pod(self, manifest: dict[str, Any]) -> tuple[Pod, dict[str, Any]]:
        """Create a pod. Returns it as it was created: the parts that matter, and the whole object."""
        meta = manifest["metadata"]
        answer = self._request(
            f"create pod {meta['namespace']}/{meta['name']}",
            self._core.create_namespaced_pod,
            meta["namespace"],
            manifest,
        )
        return Pod.model_validate_json(answer), json.loads(answer)

    def set_pod_deadline(self, namespace: str, name: str, seconds: int) -> Pod:
        """Let the kubelet end a pod this long after its start: this keeps the pod, its log and termination message."""
        answer = self._request(
            f"end pod {namespace}/{name}",
            self._core.patch_namespaced_pod,
            name,
            namespace,
            {"spec": {"activeDeadlineSeconds": seconds}},
        )
        return Pod.model_validate_json(answer)

    def delete_pod(self, namespace: str, name: str, uid: str, *, force: bool) -> Pod | None:
        """Delete exactly the pod with `uid`; `force`: without its kubelet. Returns the pod if it still exists."""
        options = _only(uid) | ({"gracePeriodSeconds": 0} if force else {})
        answer = self._request(
            f"delete pod {namespace}/{name}", self._core.delete_namespaced_pod, name, namespace, body=options
        )
        # The API server may return the object or a Status; both have a `kind`.
        return Pod.model_validate_json(answer) if json.loads(answer).get("kind") == "Pod" and not force else None

    def read_log(self, namespace: str, name: str) -> bytes:
        """The start of a pod's log, up to the maximum length of a framed document.

        `limit_bytes` is only passed on to the kubelet, which may ignore it: our own limit is enforced.
        """
        return self._body(
            f"read the log of pod {namespace}/{name}",
            self._core.read_namespaced_pod_log,
            name,
            namespace,
            limit_bytes=MAX_LOG_BYTES,
            bounds=Bounds(LOG_READ_TIMEOUT_SECONDS, LOG_SECONDS, MAX_LOG_BYTES),
        )

    def create_event(self, manifest: dict[str, Any]) -> None:
        """Create a core/v1 Event about a diagnosis."""
        self._request("create an event", self._core.create_namespaced_event, EVENT_NAMESPACE, manifest)

    def _pages(
        self,
        page_type: type[PodList] | type[NodeList] | type[DiagnosisList] | type[PartialObjectList],
        action: str,
        method: Callable[..., Any],
        *args: Any,
        limit: int = PAGE_SIZE,
        max_bytes: int | None = None,
        headers: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> Iterator[Listing[Any]]:
        """Each page of a list; `max_bytes` is for all of them together."""
        token, left_bytes = "", max_bytes
        while True:
            more: dict[str, Any] = {"_continue": token} if token else {}
            if headers:
                more["_headers"] = dict(headers)  # the client adds to it
            page_bytes = MAX_ANSWER_BYTES if left_bytes is None else left_bytes
            body = self._request(action, method, *args, limit=limit, max_bytes=page_bytes, **more, **kwargs)
            left_bytes = None if left_bytes is None else left_bytes - len(body)
            page = page_type.model_validate_json(body)
            yield Listing(page.items, page.metadata.resource_version)
            token = page.metadata.continue_
            if not token:
                return

    def _whole(
        self,
        page_type: type[PodList] | type[NodeList],
        action: str,
        method: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        return tuple(item for page in self._pages(page_type, action, method, *args, **kwargs) for item in page.items)

    def _request(
        self,
        action: str,
        method: Callable[..., Any],
        *args: Any,
        max_bytes: int = MAX_ANSWER_BYTES,
        **kwargs: Any,
    ) -> bytes:
        bounds = Bounds(READ_TIMEOUT_SECONDS, ANSWER_SECONDS, max_bytes + 1)
        body = self._body(action, method, *args, bounds=bounds, **kwargs)
        if len(body) > max_bytes:
            raise OversizedError(f"cannot {action}: the response is larger than the {max_bytes} bytes allowed")
        return body

    def _body(self, action: str, method: Callable[..., Any], *args: Any, bounds: Bounds, **kwargs: Any) -> bytes:
        timeout = (CONNECT_TIMEOUT_SECONDS, bounds.read_timeout_seconds)
        end_at = time.monotonic() + bounds.seconds
        with translated(action):
            response = method(*args, _preload_content=False, _request_timeout=timeout, **kwargs)
            self.clock.observe(response.headers.get("Date"))
            return read_body(response, max_bytes=bounds.size_bytes, end_at=end_at)


def configured(configuration: client.Configuration) -> client.Configuration:
    """`configuration` with the connections and retries of this client."""
    configuration.connection_pool_maxsize = CONNECTIONS
    configuration.retries = TimedOnceRetry(urllib3.Retry.DEFAULT.total)
    return configuration


def _diagnosis(name: str, answer: bytes) -> Diagnosis:
    try:
        return Diagnosis.model_validate_json(answer)
    except ValidationError as error:
        raise UnreadableError(f"cannot parse MemoryDiagnosis {name}: {error}") from error


def _without_empty_lists(value: Any) -> Any:
    """JSON without empty lists: `kubectl describe` would show a heading with nothing below."""
    if isinstance(value, dict):
        return {key: _without_empty_lists(inner) for key, inner in value.items() if inner != []}
    return [_without_empty_lists(inner) for inner in value] if isinstance(value, list) else value


def _only(uid: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
