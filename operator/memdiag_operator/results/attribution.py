"""Resolves container and pod ids that a node reports to the pods that the API server has bound to that node.

An id that no pod on this node has stays unattributed, so a node cannot attribute its findings to another node.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from memdiag_api.report import ContainerIdentity
from memdiag_operator.kube.objects import Pod

# A static pod's cgroup carries the hash of its file, not the UID of its mirror pod (kubernetes: pkg/kubelet/types).
STATIC_POD_HASH_ANNOTATION = "kubernetes.io/config.hash"


@dataclass(frozen=True, slots=True)
class Names:
    """A pod, and the container if it is known."""

    namespace: str
    pod: str
    container: str = ""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Names by container id and by pod UID, of one node."""

    containers: Mapping[str, Names]
    pods: Mapping[str, Names]

    def names(self, container_id: str, pod_uid: str) -> Names | None:
        """The pod that owns a process with these ids; None if no pod on the node has them."""
        return self.containers.get(container_id) or self.pods.get(pod_uid)

    def has_pod(self, namespace: str, name: str) -> bool:
        """Whether this pod is on the node."""
        return any((one.namespace, one.pod) == (namespace, name) for one in self.pods.values())

    def identities(self, container_ids: Iterable[str]) -> list[ContainerIdentity]:
        """The known ones of `container_ids`, each once, in their order."""
        return [
            ContainerIdentity(container_id=one, namespace=names.namespace, pod=names.pod, container=names.container)
            for one in dict.fromkeys(container_ids)
            if (names := self.containers.get(one))
        ]


def attribute(pods: Iterable[Pod]) -> Attribution:
    """The names of the pods of one node and of their containers, by id."""
    containers: dict[str, Names] = {}
    by_uid: dict[str, Names] = {}
    for pod in pods:
        meta, status = pod.metadata, pod.status
        uid = meta.annotations.get(STATIC_POD_HASH_ANNOTATION, meta.uid)
        by_uid[uid] = Names(meta.namespace, meta.name)
        for container in (
            *status.container_statuses,
            *status.init_container_statuses,
            *status.ephemeral_container_statuses,
        ):
            if container.container_id:
                containers[bare_container_id(container.container_id)] = Names(meta.namespace, meta.name, container.name)
    return Attribution(containers, by_uid)


def bare_container_id(container_id: str) -> str:
    """`0123...` of `containerd://0123...`."""
    return container_id.rpartition("://")[2]
