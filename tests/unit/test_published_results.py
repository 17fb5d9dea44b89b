"""Every document that the runner publishes passes the checks of the operator and names the suspect."""

import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from hypothesis import HealthCheck, given, settings

from memdiag_api.evidence import (
    LEAK_CHECKS,
    Evidence,
    Holder,
    HolderKind,
    Owner,
    TerminationMessage,
    VerdictKind,
)
from memdiag_api.framing import MAX_LOG_BYTES
from memdiag_node.conclusion.conclude import conclude
from memdiag_node.findings.measurements import Measurements
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.holding import PACKET_STRUCT_BYTES, Holding
from memdiag_node.publish import Output, publish
from memdiag_operator.results.receive import check_document
from support.arbitrary_measurements import EMPTY, NODE, PAGE, blocks, measurements

RUN = "run-1"
MAX_STACKS, MAX_HOLDERS = 64, 256  # as in memdiag_node.run


def received(measured: Measurements) -> Evidence:
    """Return what the operator reads from the log and the termination message of a runner that measured this."""
    concluded = conclude(measured, run_id=RUN, thresholds=Thresholds(), max_stacks=MAX_STACKS, max_holders=MAX_HOLDERS)
    log = io.BytesIO()
    with TemporaryDirectory() as directory:
        termination_log = Path(directory) / "termination-log"
        publish(concluded, Output.FRAMED, log, termination_log)
        message = TerminationMessage.model_validate_json(termination_log.read_bytes(), strict=True)
    assert len(log.getvalue()) <= MAX_LOG_BYTES
    evidence = check_document(log.getvalue(), message, RUN, NODE)
    assert (evidence.verdict.holder is None) == (concluded.verdict.holder is None)
    assert (evidence.verdict.stack is None) == (concluded.verdict.stack is None)
    return evidence


def stuck(pid: int, held: npt.NDArray[np.void], *, summed: int = 1, pinned_bytes: int = 0) -> Holding:
    return Holding(
        Holder(
            kind=HolderKind.SOCKET,
            owners=[Owner(pid=pid, comm="proxy", fds=[3] if summed == 1 else [])],
            owners_total=1,
            summed=summed,
            unread_bytes=100 * summed,
            unread_packets=3 * summed,  # more than the rest of a request
            pinned_bytes=pinned_bytes or len(held) * PAGE,
            stuck_seconds=60,
        ),
        held,
    )


def test_a_leak_in_100192_sockets_is_kept_despite_300_pipes() -> None:
    """Each socket pins one page, each pipe two: by size, no single socket is among the 256 holders."""
    single = [stuck(4711, blocks(number, 1)) for number in range(192)]
    rest = stuck(4711, blocks(1_000, 100_000), summed=100_000)
    pipes = [
        Holding(
            Holder(kind=HolderKind.PIPE, owners=[Owner(pid=pid, comm="sh")], owners_total=1, pinned_bytes=2 * PAGE),
            blocks(1_000_000 + 2 * pid, 2),
        )
        for pid in range(1, 301)
    ]
    holdings = sorted([*single, rest, *pipes], key=lambda one: -one.holder.pinned_bytes)
    evidence = received(replace(EMPTY, holdings=holdings))
    verdict = evidence.verdict
    assert verdict.kind is VerdictKind.PINNED_BY_UNREAD_SOCKET
    assert verdict.suspect_bytes == 100_192 * (PAGE + 3 * PACKET_STRUCT_BYTES)
    assert verdict.holder is not None
    assert evidence.holders[verdict.holder].owners[0].pid == 4711
    assert len(evidence.holders) == MAX_HOLDERS


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(measurements())
def test_every_published_document_passes_the_operators_checks(measured: Measurements) -> None:
    evidence = received(measured)
    assert (evidence.verdict.kind is VerdictKind.NO_LEAK) <= (set(evidence.checks) >= set(LEAK_CHECKS))
