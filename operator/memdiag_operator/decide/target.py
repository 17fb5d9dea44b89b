"""Which nodes a run is about: chosen once, when it starts, and from then on stored in its status."""

from collections.abc import Mapping
from dataclasses import dataclass

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import MemoryDiagnosisSpec, PodReference, Target
from memdiag_api.limits import MAX_SHORT_TEXT
from memdiag_operator.config import AllowedNodes
from memdiag_operator.kube.labels import allows, described, equality_selector, faulty_key
from memdiag_operator.kube.objects import InvalidSpec, Node, Pod
from memdiag_operator.results.sanitize import clip

SERVED_OS = "linux"
# Nodes without a kernel of their own: their pods run elsewhere.
_VIRTUAL_NODE_LABELS = {"type": "virtual-kubelet", "eks.amazonaws.com/compute-type": "fargate"}


@dataclass(frozen=True, slots=True)
class Choice:
    """The nodes of a run in their order, or why it has none."""

    target: str
    """What the run is about, in readable form."""
    node_names: tuple[str, ...] = ()
    refusal: tuple[Reason, str] | None = None


def choose_nodes(
    target: Target, allowed: AllowedNodes, *, selected: tuple[Node, ...] = (), target_pod: Pod | None = None
) -> Choice:
    """The nodes of a run that starts now.

    `selected`: every node that has the labels of target.nodeSelector. Of those that memdiag supports and that are
    `allowed`, the first maxNodes are taken: Ready nodes first, then by name. So a rerun selects the same nodes as long
    as they exist and are Ready. `target_pod`: the pod of target.podRef, if any.
    """
    if target.pod_ref:
        return _node_of_pod(target.pod_ref, target_pod)
    if target.node_selector:
        return _with_labels(target.node_selector.match_labels, target.max_nodes or 1, selected, allowed)
    return Choice(target.node_name or "", (target.node_name,) if target.node_name else ())


def _node_of_pod(wanted: PodReference, pod: Pod | None) -> Choice:
    name = f"{wanted.namespace}/{wanted.name}"
    shown = clip(name, MAX_SHORT_TEXT)
    if pod is None:
        text = f"there is no pod {name}: run `kubectl -n {wanted.namespace} get pods` to list existing pods"
        return Choice(shown, refusal=(Reason.POD_NOT_FOUND, text))
    if pod.is_terminal:
        text = f"pod {name} has ended: it no longer runs on a node"
        return Choice(shown, refusal=(Reason.POD_NOT_RUNNING, text))
    node_name = pod.spec.node_name
    if not node_name:
        text = f"pod {name} is not on a node yet: run the diagnosis again when the pod is scheduled"
        return Choice(shown, refusal=(Reason.POD_NOT_RUNNING, text))
    return Choice(clip(f"{name} on {node_name}", MAX_SHORT_TEXT), (node_name,))


def _with_labels(
    match_labels: Mapping[str, str], max_nodes: int, selected: tuple[Node, ...], allowed: AllowedNodes
) -> Choice:
    labels = equality_selector(match_labels)
    if not selected:
        text = f"no node has the labels {labels}: run `kubectl get nodes --show-labels` to list nodes with their labels"
        return Choice(clip(labels, MAX_SHORT_TEXT), refusal=(Reason.NODE_NOT_FOUND, text))
    objections = [objection for node in selected if (objection := node_objection(node, allowed))]
    fit = sorted((node for node in selected if not node_objection(node, allowed)), key=_ready_first)
    if not fit:
        reason, first = objections[0]
        text = f"none of the {len(selected)} nodes with the labels {labels} can be diagnosed: {first}"
        return Choice(clip(labels, MAX_SHORT_TEXT), refusal=(reason, text))
    names = tuple(node.metadata.name for node in fit[:max_nodes])
    count = f"{len(names)} of {len(selected)}" if len(names) < len(selected) else f"{len(names)}"
    return Choice(clip(f"{count} with {labels}", MAX_SHORT_TEXT), names)


def _ready_first(node: Node) -> tuple[bool, str]:
    return not (node.ready and node.ready.status == "True"), node.metadata.name


def spec_fault(spec: MemoryDiagnosisSpec | InvalidSpec) -> str:
    """Why a spec is invalid although the API server accepted it; empty if it is valid."""
    if isinstance(spec, InvalidSpec):
        return f"{spec.message}; it was stored under another version's schema: delete it and create it again"
    selector = spec.target.node_selector
    key = faulty_key(selector.match_labels) if selector else None
    if key is not None:  # not covered by the model's patterns: the API server should have rejected it
        return f"spec.target.nodeSelector.matchLabels: {clip(repr(key), MAX_SHORT_TEXT)} is not a valid label key"
    return ""


def node_objection(node: Node, allowed: AllowedNodes) -> tuple[Reason, str] | None:
    """Why `node` is not diagnosed; None if it can be."""
    if unsupported := unsupported_node(node):
        return Reason.NODE_UNSUPPORTED, unsupported
    if not allows(allowed, node.metadata.labels):
        text = (
            f"node {node.metadata.name} may not be diagnosed: the operator's configuration (allowedNodes) requires "
            f"nodes with {described(allowed)}"
        )
        return Reason.NODE_NOT_ALLOWED, text
    return None


def unsupported_node(node: Node) -> str:
    """Why no runner can run on `node`; empty if one can."""
    name, system = node.metadata.name, node.status.node_info.operating_system
    if system and system != SERVED_OS:
        return f"node {name} runs {system}: memdiag measures Linux kernels only"
    for label, value in _VIRTUAL_NODE_LABELS.items():
        if node.metadata.labels.get(label) == value:
            return f"node {name} is virtual ({label}={value}): it has no kernel to examine"
    return ""
