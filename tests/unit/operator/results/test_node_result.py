"""What of a node's evidence the status shows, and in which words."""

import json
import re
from typing import Any

import pytest

from memdiag_api.containers import ChargedFile, ContainerAccount
from memdiag_api.diagnosis import HolderSummary, NodeResult, NodeState, PodReference, StackSummary
from memdiag_api.evidence import (
    LEAK_CHECKS,
    Check,
    ContainerShare,
    Context,
    Evidence,
    Holder,
    HolderKind,
    Ledger,
    Need,
    NeedState,
    Owner,
    Socket,
    SuspectScope,
    Trend,
    VerdictKind,
)
from memdiag_operator.results.attribution import Attribution, Names
from memdiag_operator.results.node_result import holder_summary, node_result
from memdiag_operator.results.report import report
from memdiag_operator.results.wording import holder_line, node_sentence, run_sentence, stack_line, suspect_line
from memdiag_operator.status.trim import fit
from support.evidence import MIB, evidence_with
from support.kubernetes_objects import NAME, NODE, POD_NAME, RUN, UID, diagnosis

CONTAINER = "c" * 64
KNOWN = Attribution({CONTAINER: Names("demo", "slow-reader", "app")}, {"pod-uid": Names("demo", "slow-reader")})
NOBODY = Attribution({}, {})


def result_of(evidence: Evidence, attribution: Attribution = KNOWN, top_n: int = 10) -> NodeResult:
    return node_result(evidence, attribution, node_name=NODE, pod_name=POD_NAME, top_n=top_n)


def owned(**fields: str) -> Holder:
    owner = Owner(pid=4711, comm="python3", fds=[7], **fields)
    return Holder(
        kind=HolderKind.SOCKET,
        owners=[owner],
        unread_bytes=2 * MIB,
        pinned_bytes=131 * MIB,
        stuck_seconds=60,
        socket=None,
    )


@pytest.mark.parametrize(
    ("holder", "line"),
    [
        pytest.param(
            owned(container_id=CONTAINER, pod_uid="pod-uid"),
            "demo/slow-reader (container app, python3[4711] fd 7)",
            id="container",
        ),
        pytest.param(
            owned(container_id="d" * 64, pod_uid="pod-uid"), "demo/slow-reader (python3[4711] fd 7)", id="pod only"
        ),
        pytest.param(owned(), "python3[4711] fd 7 (no pod)", id="process of the host"),
        pytest.param(
            owned(container_id="d" * 64, pod_uid="other"), "python3[4711] fd 7 (unattributed)", id="foreign container"
        ),
        pytest.param(
            Holder(kind=HolderKind.SOCKET, unowned_reason="not yet accepted", pinned_bytes=1),
            "Socket (not yet accepted)",
            id="nobody's",
        ),
    ],
)
def test_whose_a_holder_is(holder: Holder, line: str) -> None:
    assert holder_line(holder_summary(holder, KNOWN)) == line


IMITATION = "kube-system/etcd-0 (container etcd, etcd[1] fd 3): 9 GiB unread pins 60 GiB"


def unlike(**fields: Any) -> Holder:
    return Holder(kind=HolderKind.SOCKET, pinned_bytes=0, **fields)


@pytest.mark.parametrize(
    "holder",
    [
        pytest.param(unlike(owners=[Owner(pid=7, comm=IMITATION)]), id="process"),
        pytest.param(unlike(unowned_reason=IMITATION), id="reason"),
        pytest.param(unlike(socket=Socket(family="IPv4", protocol=IMITATION)), id="protocol"),
        pytest.param(unlike(socket=Socket(family="UNIX", protocol="", local_address=IMITATION)), id="address"),
    ],
)
def test_no_word_of_a_node_passes_for_a_pod(holder: Holder) -> None:
    """What the node says is in quotes, and the line still ends with what the operator knows."""
    line = suspect_line(holder_summary(holder, NOBODY), None)
    assert re.sub(r'"[^"]*"', "", line).count("/") == 0
    assert "(container" not in re.sub(r'"[^"]*"', "", line)
    assert line.endswith("0 B unread pins 0 B")


def test_no_frame_passes_for_a_pod() -> None:
    stack = StackSummary(
        frames=[IMITATION],
        context=Context.PROCESS,
        trend=Trend.GROWING,
        outstanding_bytes=302 * MIB,
        outstanding_blocks=9664,
    )
    assert suspect_line(None, stack) == f'"{IMITATION[:64]}": 302 MiB not freed'


def test_a_check_that_failed_on_the_node_is_part_of_the_coverage_of_a_completed_run() -> None:
    need = Need(
        name="page-allocation trace",
        state=NeedState.MISSING,
        checks=[Check.ALLOC_PAGE_TRACE],
        detail="starting it failed: page_trace.bpf.c: the kernel refuses on_alloc: Permission denied",
        remedy="Run memdiag-node by hand.",
    )
    whole = evidence_with()
    verdict = whole.verdict.model_copy(update={"kind": VerdictKind.INCONCLUSIVE, "holder": None, "stack": None})
    left = {"checks": [Check.BREAKDOWN], "needs": [need], "trace": None, "stacks": [], "holders": []}
    result = result_of(whole.model_copy(update={**left, "verdict": verdict}))
    assert result.reason == "Completed"
    assert f"page-allocation trace missing: {need.detail}" in result.coverage
    assert result.breakdown


def test_a_foreign_container_is_said_to_be_unattributed() -> None:
    summary = holder_summary(owned(container_id="d" * 64), KNOWN)
    assert (summary.namespace, summary.pod) == ("", "")
    assert summary.unowned_reason == "unattributed: no pod on this node has container dddddddddddd"


def test_the_suspect_is_all_stuck_sockets_of_its_process() -> None:
    one = owned(container_id=CONTAINER)
    other = one.model_copy(update={"owners": [one.owners[0].model_copy(update={"fds": [5]})]})
    moving = one.model_copy(update={"stuck_seconds": None, "unread_bytes": 500 * MIB})
    template = evidence_with()
    verdict = template.verdict.model_copy(update={"holder": 0, "suspect_bytes": 262 * MIB})
    evidence = template.model_copy(update={"holders": [one, other, moving], "verdict": verdict})
    assert result_of(evidence).suspect == (
        "demo/slow-reader (container app, python3[4711] fd 5, 7): 4.00 MiB unread pins 262 MiB"
    )


def test_two_unowned_sockets_are_not_one_suspect() -> None:
    one = Holder(kind=HolderKind.SOCKET, unowned_reason="orphaned", unread_bytes=MIB, pinned_bytes=40 * MIB)
    one = one.model_copy(update={"stuck_seconds": 60.0})
    template = evidence_with()
    verdict = template.verdict.model_copy(update={"holder": 0, "suspect_bytes": 40 * MIB})
    evidence = template.model_copy(update={"holders": [one, one], "verdict": verdict})
    assert result_of(evidence).suspect == "Socket (orphaned): 1.00 MiB unread pins 40.0 MiB"


def test_heads_in_slab_are_part_of_what_a_suspect_pins_with_or_without_an_owner() -> None:
    unowned = Holder(
        kind=HolderKind.SOCKET, unowned_reason="orphaned", unread_bytes=MIB, pinned_bytes=0, head_bytes=40 * MIB
    ).model_copy(update={"stuck_seconds": 60.0})
    template = evidence_with()
    verdict = template.verdict.model_copy(update={"holder": 0, "suspect_bytes": 40 * MIB})
    result = result_of(template.model_copy(update={"holders": [unowned], "verdict": verdict}))
    assert result.suspect == "Socket (orphaned): 1.00 MiB unread pins 40.0 MiB"
    assert (result.top_holders[0].pinned_bytes, result.top_holders[0].head_bytes) == (0, 40 * MIB)


@pytest.mark.parametrize(
    ("scope", "who"),
    [
        (SuspectScope.CONTAINER, "demo/slow-reader (container app, python3[4711] fd 7 and others)"),
        (SuspectScope.POD, "demo/slow-reader (python3[4711] fd 7 and others)"),
    ],
)
def test_the_suspect_may_be_all_processes_of_a_container_or_a_pod(scope: SuspectScope, who: str) -> None:
    one = owned(container_id=CONTAINER, pod_uid="pod-uid")
    other = one.model_copy(update={"owners": [one.owners[0].model_copy(update={"pid": 4712, "fds": [5]})]})
    template = evidence_with()
    changes = {"holder": 0, "suspect_bytes": 9000 * MIB, "suspect_unread_bytes": 700 * MIB, "scope": scope}
    verdict = template.verdict.model_copy(update=changes)
    result = result_of(template.model_copy(update={"holders": [one, other], "verdict": verdict}))
    assert result.suspect == f"{who}: 700 MiB unread pins 8.79 GiB"
    assert result.verdict
    assert "python3[4711] and others have 700 MiB unread for at least 60 s, pinning 8.79 GiB" in result.verdict.advice


@pytest.mark.parametrize("kind", [VerdictKind.LARGE_BUT_UNEXPLAINED, VerdictKind.INCONCLUSIVE])
def test_a_verdict_without_a_leak_has_no_suspect(kind: VerdictKind) -> None:
    template = evidence_with(holders=12)
    verdict = template.verdict.model_copy(update={"kind": kind, "holder": 11, "stack": None})
    result = result_of(template.model_copy(update={"verdict": verdict}), top_n=3)
    assert result.suspect == ""
    assert result.top_holders[-1].pid == 4711 + 11


@pytest.mark.parametrize("missing", LEAK_CHECKS)
def test_no_leak_of_a_runner_that_made_fewer_checks_is_inconclusive(missing: Check) -> None:
    """As runners of version 0.1.0 said it."""
    template = evidence_with()
    verdict = template.verdict.model_copy(update={"kind": VerdictKind.NO_LEAK, "holder": None, "stack": None})
    whole = template.model_copy(update={"verdict": verdict})
    fewer = whole.model_copy(update={"checks": [check for check in Check if check is not missing]})
    assert [found.verdict.kind for one in (whole, fewer) if (found := result_of(one)).verdict] == [
        VerdictKind.NO_LEAK,
        VerdictKind.INCONCLUSIVE,
    ]
    answer = result_of(fewer).verdict
    assert answer is not None
    assert f"without {missing}" in answer.sentence


def test_several_nodes_have_no_leak_only_if_each_says_so() -> None:
    def found(node: str, kind: VerdictKind) -> NodeResult:
        template = evidence_with()
        verdict = template.verdict.model_copy(
            update={"kind": kind, "holder": None, "stack": None, "sentence": f"It is {kind}."}
        )
        evidence = template.model_copy(update={"verdict": verdict})
        return node_result(evidence, NOBODY, node_name=node, pod_name=POD_NAME, top_n=3)

    def sentence(*kinds: VerdictKind) -> str:
        results = [found(f"n{number}", kind) for number, kind in enumerate(kinds)]
        states = [
            NodeState(node_name=one.node_name, reason=one.reason, verdict=one.verdict.kind if one.verdict else None)
            for one in results
        ]
        return run_sentence(results, states)

    no, unknown = VerdictKind.NO_LEAK, VerdictKind.LARGE_BUT_UNEXPLAINED
    assert sentence(no, no).startswith("2 nodes, no leak found. Node n0: no leak found.")
    assert sentence(no, unknown, no).startswith(
        "3 nodes, no leak on 2 of them, unknown on 1. Node n1: high kernel memory usage, cause not identified. "
    )


def test_without_a_holder_the_stack_is_the_suspect() -> None:
    stack = StackSummary(
        frames=["__alloc_pages+0x1", "skb_page_frag_refill+0x2a", "tcp_sendmsg+0x3", "sock_write+0x4", "vfs_write"],
        context=Context.PROCESS,
        trend=Trend.GROWING,
        outstanding_bytes=302 * MIB,
        outstanding_blocks=9664,
        growth_bytes_per_second=5 * MIB,
    )
    assert stack_line(stack) == "skb_page_frag_refill < tcp_sendmsg < sock_write"
    assert suspect_line(None, stack).endswith("sock_write: 302 MiB not freed, growing 5.00 MiB/s")
    slab = stack.model_copy(update={"slab_cache": "kmalloc-64"})
    assert suspect_line(None, slab).endswith("sock_write: 302 MiB of kmalloc-64 not freed, growing 5.00 MiB/s")
    hostile = stack.model_copy(update={"slab_cache": "a\n(pod)"})
    assert '302 MiB of "a?(pod)" not freed' in suspect_line(None, hostile)
    assert suspect_line(None, None) == ""


def test_a_stack_has_its_class_and_cache() -> None:
    evidence = evidence_with(stacks=1)
    slab = evidence.stacks[0].model_copy(update={"memory_class": "Slab", "slab_cache": "kmalloc-64"})
    (shown,) = result_of(evidence.model_copy(update={"stacks": [slab]}), NOBODY).top_stacks
    assert (shown.memory_class, shown.slab_cache) == ("Slab", "kmalloc-64")


def test_the_top_has_the_suspect_even_when_it_is_far_down() -> None:
    evidence = evidence_with(holders=12, stacks=12)
    evidence = evidence.model_copy(update={"verdict": evidence.verdict.model_copy(update={"holder": 11, "stack": 10})})
    result = result_of(evidence, NOBODY, top_n=3)
    assert [holder.pid for holder in result.top_holders] == [4711, 4712, 4722]
    assert [stack.outstanding_bytes // MIB for stack in result.top_stacks] == [300, 299, 290]


def of_pod(evidence: Evidence, attribution: Attribution = KNOWN) -> NodeResult:
    """The result for a diagnosis of pod demo/slow-reader."""
    wanted = PodReference(namespace="demo", name="slow-reader")
    return node_result(evidence, attribution, node_name=NODE, pod_name=POD_NAME, top_n=3, highlighted=wanted)


def test_the_requested_pod_comes_first_and_the_summary_starts_with_it() -> None:
    evidence = evidence_with(holders=12)
    mine = owned(container_id=CONTAINER)
    result = of_pod(evidence.model_copy(update={"holders": [*evidence.holders, mine]}))
    assert [holder.pod for holder in result.top_holders] == ["slow-reader", "", ""]
    assert result.target_pod
    assert (result.target_pod.pinned_bytes, result.target_pod.unread_bytes) == (131 * MIB, 2 * MIB)
    said = "Pod demo/slow-reader pins 131 MiB, with 2.00 MiB unread"
    assert result.target_pod.message == said
    assert node_sentence(result).startswith(f"{said}. On node node1, 6.00 GiB of kernel memory is not accounted for")


def test_a_pods_share_is_the_ledgers_which_counts_each_block_once() -> None:
    evidence = evidence_with().model_copy(update={"holders": [owned(container_id=CONTAINER)] * 2})
    ledger = Ledger(
        alloc_page_bytes=200 * MIB,
        lines=[],
        unexplained_bytes=0,
        containers=[
            ContainerShare(container_id=CONTAINER, size_bytes=140 * MIB),
            ContainerShare(container_id="e" * 64, pod_uid="pod-uid", size_bytes=4 * MIB),
            ContainerShare(container_id="f" * 64, size_bytes=50 * MIB),
        ],
    )
    result = of_pod(evidence.model_copy(update={"ledger": ledger}))
    assert result.target_pod
    assert result.target_pod.pinned_bytes == 144 * MIB


@pytest.mark.parametrize(
    ("attribution", "was_scanned", "said"),
    [
        pytest.param(KNOWN, True, "Pod demo/slow-reader pins nothing that memdiag can see", id="innocent"),
        pytest.param(NOBODY, True, "Pod demo/slow-reader was no longer on the node when", id="gone"),
        pytest.param(
            KNOWN,
            False,
            "What pod demo/slow-reader pins was not measured: spec.checks does not include SocketQueues",
            id="not scanned",
        ),
    ],
)
def test_a_pod_without_holders_is_reported_as_well(attribution: Attribution, was_scanned: bool, said: str) -> None:
    evidence = evidence_with()
    coverage = evidence.coverage if was_scanned else None
    result = of_pod(evidence.model_copy(update={"coverage": coverage}), attribution)
    assert result.target_pod
    assert result.target_pod.message.startswith(said)
    assert result.target_pod.pinned_bytes == 0


def account(*, container_id: str = "", pod_uid: str = "pod-uid") -> ContainerAccount:
    return ContainerAccount(
        container_id=container_id,
        pod_uid=pod_uid,
        usage_bytes=640 * MIB,
        limit_bytes=640 * MIB,
        working_set_bytes=630 * MIB,
        anon_bytes=135 * MIB,
        socket_bytes=492 * MIB,
        reclaimable_bytes=10 * MIB,
        limit_hits=7,
        oom_kills=2,
    )


def test_the_requested_pod_has_its_own_account() -> None:
    others = [account(container_id=CONTAINER), account(pod_uid="another")]
    result = of_pod(evidence_with().model_copy(update={"containers": [*others, account()]}))
    assert result.target_pod
    assert result.target_pod.account == account()
    assert result.target_pod.message == (
        "Pod demo/slow-reader pins nothing that memdiag can see; it uses 640 MiB of its limit of 640 MiB (working set "
        "630 MiB; anonymous 135 MiB; sockets 492 MiB; the kernel would give back 10.0 MiB; processes killed for lack "
        "of memory: 2)"
    )


def test_containers_of_the_requested_pod_are_summed_up() -> None:
    large, small, middle, least = (ChargedFile(path=f"/{size}", cached_bytes=size) for size in (90, 20, 50, 10))
    one = account(container_id=CONTAINER).model_copy(update={"files": [large, small, least]})
    other = account(container_id="e" * 64).model_copy(update={"files": [middle]})
    partly = other.model_copy(update={"limit_bytes": None})
    result = of_pod(evidence_with().model_copy(update={"containers": [one, partly, account(pod_uid="another")]}))
    assert result.target_pod
    summed = result.target_pod.account
    assert summed
    assert (summed.container_id, summed.usage_bytes, summed.limit_bytes) == ("", 1280 * MIB, None)
    assert summed.files == [large, middle, small]
    assert of_pod(evidence_with().model_copy(update={"containers": [one]})).target_pod.account == one  # type: ignore[union-attr]  # it is there
    nothing = of_pod(evidence_with().model_copy(update={"containers": [account(pod_uid="another")]}))
    assert nothing.target_pod
    assert nothing.target_pod.account is None


def test_a_pod_of_that_name_in_another_namespace_is_another_pod() -> None:
    elsewhere = Attribution({CONTAINER: Names("other", "slow-reader", "app")}, {})
    result = of_pod(evidence_with().model_copy(update={"holders": [owned(container_id=CONTAINER)]}), elsewhere)
    assert result.target_pod
    assert result.target_pod.pinned_bytes == 0


def test_without_a_pod_in_the_request_none_is_reported() -> None:
    assert "targetPod" not in result_of(evidence_with()).to_json_object()


def test_figures_reach_the_status() -> None:
    result = result_of(evidence_with(), NOBODY)
    assert result.node_name == NODE
    assert result.alloc_page == "6.00 GiB"
    assert result.alloc_page_change_bytes == 300 * MIB
    assert result.outstanding_bytes == 310 * MIB
    assert sum(line.size_bytes for line in result.breakdown) == result.mem_total_bytes


def test_what_is_not_covered_is_said() -> None:
    missing = Need(name="kallsyms", state=NeedState.MISSING, checks=[], detail="not readable")
    evidence = evidence_with()
    assert evidence.coverage
    assert evidence.trace
    counters = evidence.trace.counters.model_copy(update={"unnamed_blocks": 12, "lost_cgroups": 2, "lost_objects": 3})
    evidence = evidence.model_copy(
        update={
            "needs": [missing],
            "trace": evidence.trace.model_copy(update={"counters": counters}),
            "window": evidence.window.model_copy(update={"interrupted": True}),
            "coverage": evidence.coverage.model_copy(update={"incomplete_queues": 3, "not_seen": ["vsock"]}),
            "notes": ["a note"],
        }
    )
    assert result_of(evidence).coverage == [
        "kallsyms missing: not readable",
        "ended early: the figures cover 60 s",
        "12 allocations without their process",
        "2 memory cgroups not named because a table was full",
        "3 objects not recorded because a table was full",
        "3 queues that could not be walked completely",
        "not seen on this kernel: vsock",
        "a note",
    ]


def test_the_summary_is_one_sentence_with_the_proof() -> None:
    evidence = evidence_with()
    stacks = [evidence.stacks[0].model_copy(update={"explained_bytes": 301 * MIB})]
    result = result_of(evidence.model_copy(update={"stacks": stacks}), NOBODY)
    sentence = node_sentence(result)
    assert sentence.startswith(
        "On node node1, 6.00 GiB of kernel memory is not accounted for by any counter; suspect: nginx[4711]"
    )
    assert "holders account for 97% of the 310 MiB allocated during the trace and not freed." in sentence


def test_a_failed_node_is_summed_up_by_its_reason() -> None:
    lost = NodeResult(node_name="n2", reason="NodeLost", message="it went away")
    assert node_sentence(lost) == "NodeLost: it went away"
    found = result_of(evidence_with())
    states = [
        NodeState(node_name="n2", reason="NodeLost"),
        NodeState(node_name=NODE, reason="Completed", verdict=VerdictKind.PINNED_BY_UNREAD_SOCKET),
    ]
    assert run_sentence([lost, found], states).startswith("A leak on 1 of 2 nodes. On node node1")
    healthy = states[1].model_copy(update={"verdict": VerdictKind.NO_LEAK})
    assert run_sentence([lost], [states[0], healthy]).startswith(
        "2 nodes, no leak on 1 of them, unknown on 1. NodeLost"
    )


def test_the_report_has_it_all_and_belongs_to_the_diagnosis() -> None:
    evidence = evidence_with(holders=30, stacks=20)
    manifest = report(evidence, KNOWN, diagnosis=diagnosis().metadata, run=RUN, node_name=NODE, suspect="somebody")
    assert manifest["metadata"]["name"] == POD_NAME
    assert manifest["metadata"]["ownerReferences"][0]["uid"] == UID
    assert (manifest["diagnosis"], manifest["nodeName"], manifest["suspect"]) == (NAME, NODE, "somebody")
    assert Evidence.model_validate(manifest["evidence"]) == evidence


def test_only_containers_of_the_evidence_are_named_in_the_report() -> None:
    evidence = evidence_with().model_copy(update={"holders": [owned(container_id=CONTAINER)]})
    manifest = report(evidence, KNOWN, diagnosis=diagnosis().metadata, run=RUN, node_name=NODE, suspect="")
    assert manifest["containers"] == [
        {"containerID": CONTAINER, "namespace": "demo", "pod": "slow-reader", "container": "app"}
    ]


def test_a_status_stays_small_by_dropping_the_smallest_finds() -> None:
    holder = HolderSummary(kind=HolderKind.SOCKET, comm="x" * 256, pinned_bytes=1)
    stack = StackSummary(
        frames=["f" * 256] * 32,
        context=Context.PROCESS,
        trend=Trend.PINNED,
        outstanding_bytes=1,
        outstanding_blocks=1,
    )
    large = NodeResult(node_name="n1", top_holders=[holder] * 20, top_stacks=[stack] * 20)
    (shorter,), truncated = fit([large], 50_000)
    assert truncated
    assert len(json.dumps(shorter.to_json_object())) <= 50_000
    assert shorter.top_stacks == large.top_stacks[: len(shorter.top_stacks)]
    assert shorter.top_stacks


def test_a_small_status_is_left_as_it_is() -> None:
    result = result_of(evidence_with())
    assert fit([result]) == ([result], False)


def test_what_cannot_be_made_smaller_is_kept() -> None:
    bare = NodeResult(node_name="n1")
    assert fit([bare], 1) == ([bare], False)
