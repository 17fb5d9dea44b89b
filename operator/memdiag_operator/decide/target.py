"""Which nodes a diagnosis is about."""

from memdiag_api.diagnosis import MemoryDiagnosisSpec
from memdiag_operator.decide.objects import InvalidSpec, Node

SERVED_OS = "linux"
# Nodes without a kernel of their own behind them: pods run elsewhere.
_VIRTUAL_NODE_LABELS = {"type": "virtual-kubelet", "eks.amazonaws.com/compute-type": "fargate"}


def target_nodes(spec: MemoryDiagnosisSpec | InvalidSpec) -> tuple[str, ...]:
    """Names of the target nodes; whether they exist is another question."""
    if isinstance(spec, InvalidSpec) or spec.target.node_name is None:
        return ()
    return (spec.target.node_name,)


def spec_fault(spec: MemoryDiagnosisSpec | InvalidSpec) -> str:
    """Why a spec cannot be served, although the API server took it; empty when it can."""
    if isinstance(spec, InvalidSpec):
        return f"{spec.message}; it was stored under another version's schema: delete it and create it anew"
    if spec.target.node_name is None:
        return "this version of memdiag serves spec.target.nodeName only: name the node"
    return ""


def unsupported_node(node: Node) -> str:
    """Why no runner can work on `node`; empty when one can."""
    name, system = node.metadata.name, node.status.node_info.operating_system
    if system and system != SERVED_OS:
        return f"node {name} runs {system}: memdiag measures Linux kernels only"
    for label, value in _VIRTUAL_NODE_LABELS.items():
        if node.metadata.labels.get(label) == value:
            return f"node {name} is virtual ({label}={value}): there is no kernel to look into"
    return ""
