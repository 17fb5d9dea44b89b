"""A finding in the status: the API server's names, one short line, and nothing that a node could forge."""

import re
from typing import Any

import pytest

from memdiag_api.diagnosis import NodeResult
from memdiag_api.evidence import Evidence, HolderKind, LeakDetected, SuspectScope, VerdictKind
from memdiag_api.findings import Finding, FindingEvidence, FindingKind, FindingTrend, LeakAnswer
from memdiag_api.limits import MAX_SHORT_TEXT, MAX_TOP_FINDINGS
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_operator.results.attribution import Attribution, Names
from memdiag_operator.results.finding import finding_line, finding_summary
from memdiag_operator.results.node_result import node_result
from memdiag_operator.results.report import report
from memdiag_operator.results.wording import node_sentence
from support.evidence import (
    GIB,
    MIB,
    answered,
    clean,
    evidence_with,
    growing_slab,
    process_memory,
    suspicious,
    unexplained,
    unread_socket,
)
from support.kubernetes_objects import NODE, POD_NAME, RUN, diagnosis

CONTAINER = "c" * 64
KNOWN = Attribution({CONTAINER: Names("demo", "web", "app")}, {"pod-uid": Names("demo", "web")})
NOBODY = Attribution({}, {})
IMITATION = "kube-system/etcd-0 (container etcd, etcd[1] fd 3): 9 GiB of anonymous memory"


def result_of(evidence: Evidence, attribution: Attribution = KNOWN) -> NodeResult:
    return node_result(evidence, attribution, node_name=NODE, pod_name=POD_NAME, top_n=10)


def line_of(finding: Finding, attribution: Attribution = KNOWN) -> str:
    return finding_line(finding, finding_summary(finding, attribution))


def about(kind: FindingKind, owner: MemoryOwner | None, **fields: Any) -> Finding:
    return unexplained().model_copy(update={"kind": kind, "owner": owner, **fields})


def owner(kind: OwnerKind, **fields: Any) -> MemoryOwner:
    return MemoryOwner(kind=kind, **fields)


# --- the line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        pytest.param(growing_slab(), "SUnreclaim 38.5 GiB: slab cache kmalloc-64, growing 220 KiB/s", id="slab"),
        pytest.param(process_memory(), "demo/web (container app): 8.00 GiB of anonymous memory", id="container"),
        pytest.param(
            process_memory(pid=7),
            "demo/web (container app, worker[7] and others): 8.00 GiB of anonymous memory",
            id="processes of one name",
        ),
        pytest.param(
            process_memory(pid=7, container_id="").model_copy(
                update={"owner": owner(OwnerKind.PROCESS, pid=7, comm="worker", processes=1)}
            ),
            "worker[7] (no pod): 8.00 GiB of anonymous memory",
            id="host",
        ),
        pytest.param(
            process_memory(pid=7, container_id="d" * 64),
            "worker[7] and others (unattributed): 8.00 GiB of anonymous memory",
            id="foreign container's process",
        ),
        pytest.param(
            process_memory(container_id="d" * 64),
            "container dddddddddddd (unattributed): 8.00 GiB of anonymous memory",
            id="foreign container",
        ),
        pytest.param(
            about(FindingKind.CONTAINER_NEAR_LIMIT, owner(OwnerKind.POD, pod_uid="pod-uid"), memory_class=""),
            "demo/web: 6.00 GiB used, near its limit",
            id="pod",
        ),
        pytest.param(unexplained(), "AllocPage 6.00 GiB: unexplained", id="nobody"),
        pytest.param(
            about(FindingKind.UNEXPLAINED, None, memory_class=""), "Memory 6.00 GiB: unexplained", id="several classes"
        ),
        pytest.param(
            about(FindingKind.GROWING_CLASS, owner(OwnerKind.KERNEL, name="Percpu"), memory_class="Percpu"),
            "Percpu 6.00 GiB",
            id="a class itself",
        ),
        pytest.param(
            about(
                FindingKind.FILE_CACHE, owner(OwnerKind.FILE, name="/var/log/a b", container_id=CONTAINER)
            ).model_copy(update={"memory_class": "FileCache"}),
            'demo/web (container app): 6.00 GiB of file cache, file "/var/log/a b"',
            id="file of a container",
        ),
        pytest.param(
            about(FindingKind.SHARED_MEMORY, owner(OwnerKind.FILE_SYSTEM, name="tmpfs"), memory_class="Shmem"),
            "Shmem 6.00 GiB: file system tmpfs",
            id="file system",
        ),
        pytest.param(
            about(FindingKind.BALLOON, owner(OwnerKind.DEVICE, name="virtio0"), memory_class="Balloon"),
            "Balloon 6.00 GiB: device virtio0, taken by the memory balloon",
            id="device",
        ),
        pytest.param(
            about(
                FindingKind.UNSENT_DATA,
                owner(OwnerKind.CONTAINER, pid=9, comm="redis", fds=[3, 4], processes=2, container_id=CONTAINER),
            ),
            "demo/web (container app, redis[9] fd 3, 4 and others): 6.00 GiB of unsent data",
            id="several processes",
        ),
    ],
)
def test_a_line_says_who_has_how_much_of_what(finding: Finding, line: str) -> None:
    assert line_of(finding) == line


@pytest.mark.parametrize("kind", FindingKind)
@pytest.mark.parametrize("owner_kind", [None, *OwnerKind])
@pytest.mark.parametrize("attribution", [KNOWN, NOBODY], ids=["known", "unknown"])
def test_no_word_of_a_node_passes_for_a_pod(
    kind: FindingKind, owner_kind: OwnerKind | None, attribution: Attribution
) -> None:
    hostile = None
    if owner_kind:
        hostile = owner(
            owner_kind, name=IMITATION, comm=IMITATION, pid=1, fds=[3], container_id=IMITATION, pod_uid=IMITATION
        )
    for one in (hostile, hostile and hostile.model_copy(update={"pid": 0, "comm": ""})):
        finding = about(kind, one, memory_class=IMITATION)
        summary = finding_summary(finding, attribution)
        line = finding_line(finding, summary)
        assert len(line) <= MAX_SHORT_TEXT
        assert "kube-system" not in re.sub(r'"[^"]*"', "", line)
        assert "kube-system" not in re.sub(r'"[^"]*"', "", summary.name)
        assert (summary.namespace, summary.pod, summary.container) == ("", "", "")


# --- the first finding, in every kind of answer -----------------------------------------------------------------------


def test_an_unread_socket_reads_as_before_there_were_findings() -> None:
    with_findings, without = result_of(evidence_with(findings=4)), result_of(evidence_with())
    assert with_findings.suspect == without.suspect == "nginx[4711] fd 11 (no pod): 3.00 MiB unread pins 5.00 GiB"
    assert node_sentence(with_findings) == node_sentence(without)
    assert with_findings.verdict == without.verdict


@pytest.mark.parametrize(
    ("kind", "scope", "who"),
    [
        (OwnerKind.PROCESS, None, "demo/web (container app, nginx[4711] fd 11)"),
        (OwnerKind.CONTAINER, SuspectScope.CONTAINER, "demo/web (container app, nginx[4711] fd 11 and others)"),
        (OwnerKind.POD, SuspectScope.POD, "demo/web (nginx[4711] fd 11 and others)"),
    ],
)
def test_an_unread_socket_is_that_of_its_pod(kind: OwnerKind, scope: SuspectScope | None, who: str) -> None:
    template = evidence_with(findings=1)
    owners = [template.holders[0].owners[0].model_copy(update={"container_id": CONTAINER, "pod_uid": "pod-uid"})]
    found = unread_socket()
    assert found.owner
    finding = found.model_copy(
        update={"owner": found.owner.model_copy(update={"kind": kind, "container_id": CONTAINER, "pod_uid": "pod-uid"})}
    )
    verdict = template.verdict.model_copy(update={"scope": scope, "suspect_unread_bytes": 7 * MIB})
    holders = [template.holders[0].model_copy(update={"owners": owners})]
    result = result_of(template.model_copy(update={"holders": holders, "findings": [finding], "verdict": verdict}))
    assert result.suspect == f"{who}: 7.00 MiB unread pins 5.00 GiB"
    assert result.verdict
    assert result.verdict.advice == result.findings[0].advice
    assert result.verdict.advice.startswith("Restart or fix ")
    assert "demo/web" in result.verdict.advice


def test_unread_sockets_with_only_the_node_in_common_are_not_one_process() -> None:
    found = unread_socket().model_copy(
        update={"owner": owner(OwnerKind.NODE, processes=40), "leak": LeakAnswer.UNKNOWN}
    )
    evidence = answered(evidence_with(), VerdictKind.SUSPICIOUS_MEMORY, LeakDetected.UNKNOWN, found)
    assert result_of(evidence).suspect == (
        "several owners, the largest nginx[4711] fd 11 (no pod): 5.00 GiB kept by unread data"
    )


def test_a_large_holder_is_named_by_its_process_and_kind() -> None:
    template = evidence_with()
    holder = template.holders[0].model_copy(update={"kind": HolderKind.PACKET_RING, "stuck_seconds": None})
    found = unread_socket().model_copy(update={"kind": FindingKind.LARGE_HOLDER, "leak": LeakAnswer.NO})
    evidence = answered(template, VerdictKind.NO_LEAK, LeakDetected.FALSE, found)
    result = result_of(evidence.model_copy(update={"holders": [holder]}))
    assert result.suspect == "nginx[4711] fd 11 (no pod): 5.00 GiB kept (PacketRing)"
    ownerless = holder.model_copy(update={"owners": [], "unowned_reason": "kernel"})
    pool = found.model_copy(update={"owner": owner(OwnerKind.KERNEL_OBJECT, name="a pool of eth0")})
    result = result_of(evidence.model_copy(update={"holders": [ownerless], "findings": [pool]}))
    assert result.suspect == "TCP 10.244.0.7:80 (kernel): 5.00 GiB kept"


def test_a_growing_allocation_is_its_call_stack_even_if_a_holder_has_the_memory() -> None:
    found = unread_socket().model_copy(
        update={
            "kind": FindingKind.GROWING_ALLOCATION,
            "owner": owner(OwnerKind.CALL_STACK, name="function_0", pid=5, comm="x"),
        }
    )
    evidence = answered(evidence_with(), VerdictKind.GROWING_KERNEL_ALLOCATION, LeakDetected.TRUE, found)
    verdict = evidence.verdict.model_copy(update={"holder": 0, "stack": 0})
    suspect = result_of(evidence.model_copy(update={"verdict": verdict})).suspect
    assert suspect.startswith("function_0_of_the_network_stack < ")
    assert suspect.endswith(": 300 MiB not freed, growing 5.00 MiB/s")


@pytest.mark.parametrize(
    ("evidence", "sentence"),
    [
        pytest.param(
            answered(evidence_with(), VerdictKind.LEAKED_MEMORY, LeakDetected.TRUE, growing_slab()),
            "Node node1: leaked memory. First finding: SUnreclaim 38.5 GiB: slab cache kmalloc-64, growing 220 KiB/s. "
            "The node's runner says: The answer is LeakedMemory.",
            id="leak",
        ),
        pytest.param(
            suspicious(evidence_with()),
            "Node node1: suspicious memory usage. First finding: AllocPage 6.00 GiB: unexplained. "
            "The node's runner says: The answer is SuspiciousMemory.",
            id="unknown",
        ),
        pytest.param(
            clean(evidence_with()),
            "Node node1: no leak found. First finding: demo/web (container app): 8.00 GiB of anonymous memory. "
            "The node's runner says: The answer is NoLeak.",
            id="no leak",
        ),
    ],
)
def test_the_first_finding_is_part_of_every_answer(evidence: Evidence, sentence: str) -> None:
    assert node_sentence(result_of(evidence)) == sentence


# --- the fields -------------------------------------------------------------------------------------------------------


def test_the_status_has_the_first_ten_in_their_order() -> None:
    evidence = evidence_with(findings=16)
    result = result_of(evidence)
    assert len(result.findings) == MAX_TOP_FINDINGS == 10
    assert [one.size_bytes for one in result.findings] == [one.size_bytes for one in evidence.findings[:10]]
    assert result.leak_detected is LeakDetected.TRUE
    assert result.explained_memory_bytes == 23 * GIB


def test_a_document_of_version_0_1_0_has_no_findings() -> None:
    result = result_of(evidence_with())
    assert (result.findings, result.explained_memory_bytes) == ([], None)
    assert result.leak_detected is LeakDetected.TRUE


def test_a_summary_has_the_figures_and_the_names_of_the_api_server() -> None:
    (summary,) = result_of(clean(evidence_with())).findings
    assert summary.to_json_object() == {
        "kind": "ProcessMemory",
        "memoryClass": "AnonPages",
        "sizeBytes": 8 * GIB,
        "size": "8.00 GiB",
        "leak": "No",
        "reclaimable": False,
        "confidence": "High",
        "ownerKind": "Container",
        "namespace": "demo",
        "pod": "web",
        "container": "app",
        "pid": 0,
        "comm": "",
        "fds": [],
        "name": "",
        "freedBy": "End or restart it.",
        "freedBytes": 8 * GIB,
        "sentence": "A container uses 8.00 GiB of anonymous memory.",
        "advice": "",
    }


def test_advice_of_a_runner_is_marked_as_such() -> None:
    slab = finding_summary(growing_slab(), KNOWN)
    assert slab.advice == "The node's runner says: Find the driver by its call stack."
    assert slab.growth_bytes_per_second == 220 * 1024
    assert finding_summary(process_memory(), KNOWN).growth_bytes_per_second is None


@pytest.mark.parametrize("rate", [-5e6, 0.0, 0.4])
def test_what_does_not_grow_is_not_said_to_grow(rate: float) -> None:
    trend = FindingTrend(bytes_per_second=rate, over_seconds=60)
    assert line_of(growing_slab().model_copy(update={"trend": trend})) == "SUnreclaim 38.5 GiB: slab cache kmalloc-64"


def test_a_finding_without_references_needs_no_holder() -> None:
    found = unread_socket().model_copy(update={"evidence": FindingEvidence()})
    result = result_of(evidence_with().model_copy(update={"findings": [found], "leak_detected": LeakDetected.TRUE}))
    assert result.suspect == "nginx[4711] fd 11 (no pod): 5.00 GiB kept by unread data"


def test_containers_of_findings_and_owners_are_named_in_the_report() -> None:
    evidence = clean(evidence_with(holders=0))
    manifest = report(evidence, KNOWN, diagnosis=diagnosis().metadata, run=RUN, node_name=NODE, suspect="")
    assert manifest["containers"] == [{"containerID": CONTAINER, "namespace": "demo", "pod": "web", "container": "app"}]
