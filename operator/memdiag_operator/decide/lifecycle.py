"""Where a diagnosis is in its lifecycle: whether a run should start, is suspended, or nothing is left to do."""

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_api.limits import MAX_HANDLED_REQUESTS
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec
from memdiag_operator.status.states import run_states


def starts_run(diagnosis: Diagnosis) -> bool:
    """Whether a run should start: the first, one after a suspension, or one that the annotation requests."""
    status = diagnosis.status
    if is_suspended(diagnosis):
        return False
    if diagnosis.is_finished:
        return diagnosis.requested_at not in ("", *handled_requests(status))
    if isinstance(diagnosis.spec, InvalidSpec):
        return status.start_time is None
    return status.start_time is None or not run_states(diagnosis)


def is_suspended(diagnosis: Diagnosis) -> bool:
    """Whether no runner may be started; `terminate` takes precedence over `suspend`."""
    spec = diagnosis.spec
    return not isinstance(spec, InvalidSpec) and spec.suspend and not spec.terminate


def is_settled(diagnosis: Diagnosis) -> bool:
    """Whether a sweep may skip it: its run has ended, no other is requested, and it has no time to live."""
    spec = diagnosis.spec
    has_ttl = not isinstance(spec, InvalidSpec) and spec.ttl_seconds_after_finished is not None
    is_seen = diagnosis.status.observed_generation == diagnosis.metadata.generation
    return diagnosis.is_finished and is_seen and not has_ttl and not starts_run(diagnosis)


def handled_requests(status: MemoryDiagnosisStatus) -> list[str]:
    """Requests that had their run, the latest first; memdiag 0.1.0 stored only the last one."""
    last = [status.last_handled_request] if status.last_handled_request else []
    return list(dict.fromkeys([*last, *status.handled_requests]))[:MAX_HANDLED_REQUESTS]
