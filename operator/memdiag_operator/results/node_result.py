"""One node's evidence as shown in the status: the most important part, with the API server's names instead of ids."""

from collections.abc import Iterator, Mapping, Sequence

from memdiag_api import limits
from memdiag_api.conditions import Reason
from memdiag_api.containers import ContainerAccount
from memdiag_api.diagnosis import (
    HolderSummary,
    NodeResult,
    PodReference,
    PodShare,
    StackHolder,
    StackSummary,
    TargetPod,
    VerdictSummary,
)
from memdiag_api.evidence import Evidence, Holder, LeakDetected, NeedState, Owner, Stack, Verdict
from memdiag_api.limits import MAX_SENTENCE, MAX_SHORT_TEXT
from memdiag_api.process_name import shown_process
from memdiag_api.units import format_bytes
from memdiag_operator.results.attribution import Attribution
from memdiag_operator.results.finding import FindingInWords, findings_in_words
from memdiag_operator.results.leak import answer_of
from memdiag_operator.results.sanitize import clip
from memdiag_operator.results.suspect import whole_suspect
from memdiag_operator.results.wording import advice, holder_line, suspect_line, target_pod_sentence


def node_result(
    evidence: Evidence,
    attribution: Attribution,
    *,
    node_name: str,
    pod_name: str,
    top_n: int,
    reason: Reason = Reason.COMPLETED,
    message: str = "",
    highlighted: PodReference | None = None,
) -> NodeResult:
    """The most important part of `evidence`; `node_name` and `pod_name` are the API server's, `reason` is the run's.

    `highlighted`: the pod that the diagnosis is about; its holders come first.
    """
    holders = [holder_summary(holder, attribution) for holder in evidence.holders]
    stacks = [_stack_summary(stack, holders) for stack in evidence.stacks]
    trace, breakdown = evidence.trace, evidence.breakdown
    verdict, leak = answer_of(evidence)
    findings = findings_in_words(evidence, attribution, holders, stacks)
    first = findings[0] if findings else _suspect_of_verdict(evidence, verdict, leak, holders, stacks)
    of_pod = [at for at, one in enumerate(holders) if highlighted and _is_of(one, highlighted)]
    target_pod = (
        _target_pod(evidence, attribution, highlighted, [holders[at] for at in of_pod]) if highlighted else None
    )
    return NodeResult(
        node_name=node_name,
        pod_name=pod_name,
        reason=reason,
        message=message,
        verdict=VerdictSummary(
            kind=verdict.kind,
            confidence=verdict.confidence,
            sentence=verdict.sentence,
            advice=first.advice or advice(None, verdict.advice),
        ),
        leak_detected=leak,
        suspect=first.line,
        findings=[one.summary for one in findings if one.summary],
        **({"target_pod": target_pod} if target_pod else {}),
        mem_total_bytes=evidence.host.mem_total_bytes,
        **({"explained_memory_bytes": evidence.explained_bytes} if evidence.leak_detected else {}),
        alloc_page=format_bytes(breakdown.alloc_page_bytes) if breakdown else "",
        alloc_page_bytes=breakdown.alloc_page_bytes if breakdown else None,
        alloc_page_change_bytes=breakdown.alloc_page_change_bytes if breakdown else 0,
        outstanding_bytes=trace.outstanding_bytes if trace else 0,
        explained_bytes=_explained_bytes(evidence),
        pinned_bytes=evidence.coverage.pinned_bytes if evidence.coverage else 0,
        breakdown=breakdown.classes if breakdown else [],
        top_stacks=[stacks[at] for at in _top(len(stacks), verdict.stack, top_n)],
        top_holders=[holders[at] for at in _top(len(holders), verdict.holder, top_n, of_pod)],
        pinned_by_pod=_pinned_by_pod(evidence, attribution, top_n),
        coverage=list(_coverage(evidence))[: limits.MAX_COVERAGE],
    )


def holder_summary(holder: Holder, attribution: Attribution) -> HolderSummary:
    """One holder, named by its first owner."""
    owner = holder.owners[0] if holder.owners else None
    names = attribution.names(owner.container_id, owner.pod_uid) if owner else None
    socket = holder.socket
    return HolderSummary(
        kind=holder.kind,
        namespace=names.namespace if names else "",
        pod=names.pod if names else "",
        container=names.container if names else "",
        pid=owner.pid if owner else 0,
        comm=owner.comm if owner else "",
        fds=owner.fds[: limits.MAX_TOP_FDS] if owner else [],
        unowned_reason=_unowned_reason(holder, owner, is_named=names is not None),
        protocol=socket.protocol if socket else "",
        state=socket.state if socket else "",
        local_address=socket.local_address if socket else "",
        remote_address=socket.remote_address if socket else "",
        unread_bytes=holder.unread_bytes,
        charge_bytes=holder.charge_bytes,
        pinned_bytes=holder.pinned_bytes,
        head_bytes=holder.head_bytes,
        memory_class=holder.memory_class,
        stuck_seconds=holder.stuck_seconds,
    )


def _suspect_of_verdict(
    evidence: Evidence, verdict: Verdict, leak: LeakDetected, holders: list[HolderSummary], stacks: list[StackSummary]
) -> FindingInWords:
    """The suspect of a document without findings, as those of version 0.1.0. A verdict without a leak has none."""
    found = verdict if leak is LeakDetected.TRUE else None
    suspect = whole_suspect(evidence, found.holder, holders) if found and found.holder is not None else None
    stack = stacks[found.stack] if found and found.stack is not None else None
    line = suspect_line(suspect, stack, scope=verdict.scope)
    return FindingInWords(line=line, advice=advice(suspect, verdict.advice, scope=verdict.scope))


def _unowned_reason(holder: Holder, owner: Owner | None, *, is_named: bool) -> str:
    if owner is None:
        return holder.unowned_reason or "no process holds it"
    if not is_named and owner.container_id:
        return clip(f"unattributed: no pod on this node has container {owner.container_id[:12]}", MAX_SHORT_TEXT)
    return holder.unowned_reason


def _stack_summary(stack: Stack, holders: list[HolderSummary]) -> StackSummary:
    return StackSummary(
        frames=stack.frames[: limits.MAX_TOP_FRAMES],
        context=stack.context,
        trend=stack.trend,
        outstanding_bytes=stack.outstanding_bytes,
        outstanding_blocks=stack.outstanding_blocks,
        memory_class=clip(stack.memory_class, MAX_SHORT_TEXT),
        slab_cache=clip(stack.slab_cache, MAX_SHORT_TEXT),
        growth_bytes_per_second=stack.growth_bytes_per_second,
        processes=[shown_process(one.comm, one.pid) for one in stack.processes[: limits.MAX_TOP_PROCESSES]],
        held_by=[
            StackHolder(
                holder=clip(holder_line(holders[held.holder]), MAX_SHORT_TEXT),
                size_bytes=held.size_bytes,
                share=held.share,
            )
            for held in stack.held_by[: limits.MAX_TOP_HELD_BY]
        ],
    )


def _pinned_by_pod(evidence: Evidence, attribution: Attribution, limit: int) -> list[PodShare]:
    shares = []
    for share in evidence.ledger.containers[:limit] if evidence.ledger else []:
        names = attribution.names(share.container_id, share.pod_uid)
        shares.append(
            PodShare(
                namespace=names.namespace if names else "",
                pod=names.pod if names else "",
                container=names.container if names else "",
                pinned_bytes=share.size_bytes,
            )
        )
    return shares


def _is_of(holder: HolderSummary, pod: PodReference) -> bool:
    return (holder.namespace, holder.pod) == (pod.namespace, pod.name)


def _target_pod(
    evidence: Evidence, attribution: Attribution, wanted: PodReference, holders: list[HolderSummary]
) -> TargetPod:
    """What `wanted` pins: by the ledger, which counts each block once, otherwise by its holders."""
    shares = evidence.ledger.containers if evidence.ledger else []
    pinned_bytes = sum(
        share.size_bytes
        for share in shares
        if (names := attribution.names(share.container_id, share.pod_uid))
        and (names.namespace, names.pod) == (wanted.namespace, wanted.name)
    ) or sum(one.pinned_bytes for one in holders)
    unread_bytes = sum(one.unread_bytes for one in holders)
    account = _account(evidence, attribution, wanted)
    return TargetPod(
        namespace=wanted.namespace,
        name=wanted.name,
        message=target_pod_sentence(
            wanted,
            pinned_bytes=pinned_bytes,
            unread_bytes=unread_bytes,
            is_there=attribution.has_pod(wanted.namespace, wanted.name),
            was_scanned=evidence.coverage is not None,
            account=account,
        ),
        unread_bytes=unread_bytes,
        pinned_bytes=pinned_bytes,
        **({"account": account} if account else {}),
    )


def _account(evidence: Evidence, attribution: Attribution, wanted: PodReference) -> ContainerAccount | None:
    """The account of the pod's own cgroup, which includes its containers; else the sum of theirs."""
    accounts = [
        one
        for one in evidence.containers
        if (names := attribution.names(one.container_id, one.pod_uid))
        and (names.namespace, names.pod) == (wanted.namespace, wanted.name)
    ]
    of_pod = [one for one in accounts if not one.container_id]
    return next(iter(of_pod), None) or (_summed(accounts) if accounts else None)


def _summed(accounts: Sequence[ContainerAccount]) -> ContainerAccount:
    """Containers of one pod together. A figure that one of them lacks is unknown."""
    values = [one.model_dump() for one in accounts]
    numbers = [name for name in values[0] if name not in ("container_id", "pod_uid", "files")]
    sums = {
        name: sum(one[name] for one in values) if all(one[name] is not None for one in values) else None
        for name in numbers
    }
    identity = {"container_id": accounts[0].container_id if len(accounts) == 1 else "", "pod_uid": accounts[0].pod_uid}
    files = sorted((file for one in accounts for file in one.files), key=lambda file: -file.cached_bytes)
    return ContainerAccount(**identity, **sums, files=files[: limits.MAX_CHARGED_FILES])


def _top(count: int, suspect: int | None, limit: int, first: Sequence[int] = ()) -> list[int]:
    """Indexes of `limit` of `count` records: `first`, then the largest; always includes the suspect."""
    chosen = list(dict.fromkeys([*first, *range(count)]))[:limit]
    if suspect is not None and suspect not in chosen:
        chosen[-1] = suspect
    return chosen


def _explained_bytes(evidence: Evidence) -> int:
    outstanding = evidence.trace.outstanding_bytes if evidence.trace else 0
    return min(outstanding, sum(stack.explained_bytes for stack in evidence.stacks))


def _coverage(evidence: Evidence) -> Iterator[str]:
    for need in evidence.needs:
        if need.state is not NeedState.MET:
            yield clip(f"{need.name} {need.state.lower()}: {need.detail}", MAX_SENTENCE)
    if evidence.window.interrupted:
        yield f"ended early: the figures cover {evidence.window.traced_seconds:.0f} s"
    if evidence.trace:
        yield from _losses(
            {
                "allocations without a stack": evidence.trace.counters.lost_stacks,
                "allocations not recorded because a table was full": evidence.trace.counters.lost_records,
                "allocations without their process": evidence.trace.counters.unnamed_blocks,
                "memory cgroups not named because a table was full": evidence.trace.counters.lost_cgroups,
                "runs of the trace program that the kernel skipped": evidence.trace.counters.missed_runs,
                "objects not recorded because a table was full": evidence.trace.counters.lost_objects,
                "recorded objects whose slab could not be read": evidence.trace.counters.unresolved_objects,
            }
        )
    if evidence.coverage:
        yield from _losses(
            {
                "queues that could not be walked completely": evidence.coverage.incomplete_queues,
                "processes that could not be read": evidence.coverage.processes_unreadable,
            }
        )
        if evidence.coverage.not_seen:
            yield clip(f"not seen on this kernel: {', '.join(evidence.coverage.not_seen)}", MAX_SENTENCE)
    yield from evidence.notes


def _losses(counts: Mapping[str, int]) -> Iterator[str]:
    for what, count in counts.items():
        if count:
            yield f"{count} {what}"
