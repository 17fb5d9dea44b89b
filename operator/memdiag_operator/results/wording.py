"""Findings in words: the suspect in one line, and the result in one sentence."""

import re
from collections.abc import Sequence

from memdiag_api.conditions import ConditionStatus
from memdiag_api.containers import ContainerAccount
from memdiag_api.diagnosis import HolderSummary, NodeResult, NodeState, PodReference, StackSummary
from memdiag_api.evidence import SuspectScope, VerdictKind
from memdiag_api.findings import FindingKind
from memdiag_api.limits import MAX_SENTENCE, MAX_SHORT_TEXT
from memdiag_api.memory_classes import ClassName
from memdiag_api.process_name import quoted_unless, shown_process
from memdiag_api.units import format_bytes
from memdiag_operator.results.leak import WEIGHT, leak_status
from memdiag_operator.results.sanitize import clip

NODE_SAYS = "The node's runner says: "
"""Marks text that a node chooses freely, next to what the API server knows."""
_SUSPECT_FRAMES = 3
_IN_WORDS = {
    VerdictKind.PINNED_BY_UNREAD_SOCKET: "unread data pins memory",
    VerdictKind.GROWING_KERNEL_ALLOCATION: "kernel allocations grow",
    VerdictKind.LEAKED_MEMORY: "leaked memory",
    VerdictKind.SUSPICIOUS_MEMORY: "suspicious memory usage",
    VerdictKind.LARGE_BUT_UNEXPLAINED: "high kernel memory usage, cause not identified",
    VerdictKind.NO_LEAK: "no leak found",
    VerdictKind.INCONCLUSIVE: "inconclusive",
}
_WITHOUT_A_WORD = {
    ConditionStatus.TRUE: "a leak was found",
    ConditionStatus.UNKNOWN: "a leak cannot be excluded",
    ConditionStatus.FALSE: "no leak found",
}
_OF_SEVERAL = (SuspectScope.CONTAINER, SuspectScope.POD)
# Every allocation passes through these: they say nothing about the caller.
_ALLOCATOR_PREFIXES = ("__alloc_pages", "alloc_pages", "__get_free_pages", "get_free_pages", "__alloc_frozen_pages")


# A line starts with the API server's name of a pod, or shows that there is none. Text from the node that does not match
# these patterns is quoted, so that it cannot be mistaken for such a name.
_PLAIN_PROTOCOL = re.compile(r"[A-Za-z0-9_-]*")
_PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9.:@*\[\]_%-]*")
_PLAIN_REASON = re.compile(r"[A-Za-z0-9 ,.:;'_-]*")
_PLAIN_SYMBOL = re.compile(r"[A-Za-z0-9_.$<>\[\] -]*")
_PLAIN_CACHE = re.compile(r"[A-Za-z0-9_.:-]+")
_PROTOCOL_LIMIT, _ADDRESS_LIMIT, _REASON_LIMIT, _SYMBOL_LIMIT = 16, 64, 100, 64


def holder_line(holder: HolderSummary, *, scope: SuspectScope | None = None) -> str:
    """The owner of a holder in a few words: `demo/slow-reader (container app, python3[4711] fd 7)`.

    `scope`: if set to more than a process, this process is the one of several that pins the most.
    """
    if not holder.pid:
        protocol = quoted_unless(_PLAIN_PROTOCOL, holder.protocol, _PROTOCOL_LIMIT)
        address = quoted_unless(_PLAIN_ADDRESS, holder.local_address, _ADDRESS_LIMIT)
        what = " ".join(word for word in (protocol or holder.kind.value, address) if word)
        return f"{what} ({quoted_unless(_PLAIN_REASON, holder.unowned_reason, _REASON_LIMIT)})"
    descriptors = ", ".join(str(fd) for fd in holder.fds[:4])
    process = shown_process(holder.comm, holder.pid) + (f" fd {descriptors}" if descriptors else "")
    if scope in _OF_SEVERAL:
        process += " and others"
    if not holder.pod:
        return f"{process} (unattributed)" if holder.unowned_reason else f"{process} (no pod)"
    container = f"container {holder.container}, " if holder.container and scope is not SuspectScope.POD else ""
    return f"{holder.namespace}/{holder.pod} ({container}{process})"


def stack_line(stack: StackSummary) -> str:
    """The callers closest to the allocation, without offsets: `skb_page_frag_refill < sk_page_frag_refill`."""
    names = [frame.partition("+")[0] for frame in stack.frames]
    callers = [name for name in names if not name.startswith(_ALLOCATOR_PREFIXES)] or names
    shown = [quoted_unless(_PLAIN_SYMBOL, name, _SYMBOL_LIMIT) for name in callers[:_SUSPECT_FRAMES]]
    return " < ".join(shown) or "unknown stack"


def suspect_line(holder: HolderSummary | None, stack: StackSummary | None, *, scope: SuspectScope | None = None) -> str:
    """The prime suspect in one short line: the holder if any, otherwise the stack; empty without either."""
    if holder:
        pins = f"{format_bytes(holder.unread_bytes)} unread pins {format_bytes(holder.pinned_bytes)}"
        return clip(f"{holder_line(holder, scope=scope)}: {pins}", MAX_SHORT_TEXT)
    if stack:
        rate = f", growing {format_bytes(stack.growth_bytes_per_second)}/s" if stack.growth_bytes_per_second > 0 else ""
        of_cache = f" of {quoted_unless(_PLAIN_CACHE, stack.slab_cache, _SYMBOL_LIMIT)}" if stack.slab_cache else ""
        grew = f"{format_bytes(stack.outstanding_bytes)}{of_cache} not freed{rate}"
        return clip(f"{stack_line(stack)}: {grew}", MAX_SHORT_TEXT)
    return ""


def advice(holder: HolderSummary | None, runner_advice: str, *, scope: SuspectScope | None = None) -> str:
    """What to do next: with the name of the suspect's pod if it has one, otherwise the runner's own advice."""
    if holder is None or not holder.pod:
        return clip(f"{NODE_SAYS}{runner_advice}", MAX_SENTENCE) if runner_advice else ""
    container = f"container {holder.container} of " if holder.container and scope is not SuspectScope.POD else ""
    descriptors = ", ".join(str(fd) for fd in holder.fds[:4])
    stuck = f" for at least {holder.stuck_seconds:.0f} s" if holder.stuck_seconds else ""
    process = shown_process(holder.comm, holder.pid)
    who = f"{process} and others have" if scope in _OF_SEVERAL else f"{process} has"
    where = "" if scope in _OF_SEVERAL else f" on fd {descriptors}"
    back = "they read or close their sockets" if scope in _OF_SEVERAL else "it reads or closes the socket"
    return clip(
        f"Restart or fix {container}pod {holder.namespace}/{holder.pod}: {who} "
        f"{format_bytes(holder.unread_bytes)} unread{where}{stuck}, pinning "
        f"{format_bytes(holder.pinned_bytes)}. The memory is freed as soon as {back}.",
        MAX_SENTENCE,
    )


def target_pod_sentence(
    pod: PodReference,
    *,
    pinned_bytes: int,
    unread_bytes: int,
    is_there: bool,
    was_scanned: bool,
    account: ContainerAccount | None = None,
) -> str:
    """What the pod that a diagnosis is about pins, and what its cgroup is charged for."""
    name = f"pod {pod.namespace}/{pod.name}"
    if not was_scanned:
        text = f"What {name} pins was not measured: spec.checks does not include SocketQueues"
    elif pinned_bytes:
        text = f"Pod {name[4:]} pins {format_bytes(pinned_bytes)}, with {format_bytes(unread_bytes)} unread"
    elif is_there:
        text = f"Pod {name[4:]} pins nothing that memdiag can see"
    else:
        text = f"Pod {name[4:]} was no longer on the node when the measurement ended"
    return clip(f"{text}; {account_words(account)}" if account else text, MAX_SENTENCE)


def account_words(account: ContainerAccount) -> str:
    """What a cgroup is charged for, in a few words: `it uses 640 MiB of its limit of 640 MiB (...)`."""
    limit = f" of its limit of {format_bytes(account.limit_bytes)}" if account.limit_bytes else ""
    parts = {
        "working set": account.working_set_bytes,
        "anonymous": account.anon_bytes,
        "files": account.file_bytes,
        "shared memory": account.shmem_bytes,
        "kernel": account.kernel_bytes,
        "sockets": account.socket_bytes,
    }
    shown = [f"{name} {format_bytes(size)}" for name, size in parts.items() if size]
    if account.reclaimable_bytes is not None:
        shown.append(f"the kernel would give back {format_bytes(account.reclaimable_bytes)}")
    if account.oom_kills:
        shown.append(f"processes killed for lack of memory: {account.oom_kills}")
    details = f" ({'; '.join(shown)})" if shown else ""
    return f"it uses {format_bytes(account.usage_bytes)}{limit}{details}"


def node_sentence(result: NodeResult) -> str:
    """The result of one node; if the diagnosis is about a pod, it starts with what that pod pins."""
    sentence = _node_sentence(result)
    return clip(f"{result.target_pod.message}. {sentence}", MAX_SENTENCE) if result.target_pod else sentence


def _node_sentence(result: NodeResult) -> str:
    if result.verdict is None:
        return clip(f"{result.reason}: {result.message}", MAX_SENTENCE)
    leak = leak_status(result) or ConditionStatus.UNKNOWN
    if not result.suspect or leak is not ConditionStatus.TRUE or not _explains_alloc_page(result):
        words = _IN_WORDS.get(result.verdict.kind, _WITHOUT_A_WORD[leak])
        first = f" First finding: {result.suspect.rstrip('.')}." if result.suspect else ""
        return clip(f"Node {result.node_name}: {words}.{first} {NODE_SAYS}{result.verdict.sentence}", MAX_SENTENCE)
    unaccounted = f"{result.alloc_page} of kernel memory is not accounted for by any counter"
    held = unaccounted if result.alloc_page else "memory is pinned"
    return clip(f"On node {result.node_name}, {held}; suspect: {result.suspect}{_proof(result)}.", MAX_SENTENCE)


def _explains_alloc_page(result: NodeResult) -> bool:
    """Whether the first finding is about allocpage, as every leak of version 0.1.0 was."""
    if not result.findings or result.findings[0].kind is FindingKind.UNREAD_SOCKET:
        return True
    first = result.findings[0]
    return first.kind is FindingKind.GROWING_ALLOCATION and first.memory_class == ClassName.ALLOC_PAGE


def run_sentence(results: Sequence[NodeResult], states: Sequence[NodeState]) -> str:
    """The result of a run on the nodes of `states`: that of its strongest node, and how many nodes have a leak."""
    sentence = node_sentence(max(results, key=weight_as_answer))
    if len(states) == 1:
        return sentence
    answers = [leak_status(state) for state in states]
    leaks, noes = answers.count(ConditionStatus.TRUE), answers.count(ConditionStatus.FALSE)
    if leaks:
        found = f"A leak on {leaks} of {len(states)} nodes"
    elif noes == len(states):
        found = f"{len(states)} nodes, no leak found"
    else:
        found = f"{len(states)} nodes, no leak on {noes} of them, unknown on {len(states) - noes}"
    return clip(f"{found}. {sentence}", MAX_SENTENCE)


def run_suspect(results: Sequence[NodeResult], states: Sequence[NodeState]) -> str:
    """The prime suspect of a run on the nodes of `states`, with its node if there are several."""
    best = max(results, key=weight_as_answer)
    is_alone = len(states) == 1 or not best.suspect
    return best.suspect if is_alone else clip(f"{best.node_name}: {best.suspect}", MAX_SHORT_TEXT)


def weight_as_answer(result: NodeResult) -> tuple[int, bool, int]:
    """Sort key of the most relevant node: a leak, an unclear result, no leak, no result; then the largest.

    The size is that of the first finding, or of allocpage in a result without findings.
    """
    leak = leak_status(result)
    size_bytes = result.findings[0].size_bytes if result.findings else result.alloc_page_bytes or 0
    return WEIGHT[leak] if leak else -1, bool(result.suspect), size_bytes


def _proof(result: NodeResult) -> str:
    if not (result.outstanding_bytes and result.explained_bytes):
        return ""
    share = result.explained_bytes / result.outstanding_bytes
    traced = format_bytes(result.outstanding_bytes)
    return f"; holders account for {share:.0%} of the {traced} allocated during the trace and not freed"
