"""Keeps a status small: etcd stores all of it, and every watcher receives all of it on each write.

In a run on a thousand nodes (Kubernetes limits their names to 63 characters, as label values), the states take up to
150 KiB, the results MAX_RESULTS_BYTES, the rest a few KiB.
"""

import json
from collections.abc import Sequence

from memdiag_api.conditions import Reason
from memdiag_api.diagnosis import NodeResult
from memdiag_api.limits import MAX_RESULTS
from memdiag_operator.results.wording import weight_as_answer
from memdiag_operator.status.states import UNSETTLED

MIN_FAILURES = 4
MAX_RESULTS_BYTES = 60 * 1024
"""Of the 64 KiB that a status may have; the rest is for conditions and references."""


def most_relevant(results: Sequence[NodeResult]) -> list[NodeResult]:
    """The results that the status has room for: answers, strongest first; some failures; then nodes in progress.

    An answer that is left off is only in its node's report, so it takes precedence over progress, which changes anyway.
    """
    answers = sorted((one for one in results if one.verdict), key=weight_as_answer, reverse=True)
    failures = [one for one in results if not one.verdict and one.reason not in UNSETTLED]
    running = [one for one in results if one.reason == Reason.RUNNING]
    waiting = [one for one in results if one.reason == Reason.PENDING]
    answers = answers[: MAX_RESULTS - min(MIN_FAILURES, len(failures))]
    return [*answers, *failures, *running, *waiting][:MAX_RESULTS]


def fit(results: Sequence[NodeResult], limit_bytes: int = MAX_RESULTS_BYTES) -> tuple[list[NodeResult], bool]:
    """`results` within `limit_bytes` of JSON, and whether anything was left off: the smallest findings go first."""
    fitting = list(results)
    truncated = False
    while fitting and sum(map(_size_bytes, fitting)) > limit_bytes:
        at = max(range(len(fitting)), key=lambda index: _size_bytes(fitting[index]))
        shorter = _without_last_find(fitting[at])
        if shorter is None:
            break
        fitting[at] = shorter
        truncated = True
    return fitting, truncated


def _without_last_find(result: NodeResult) -> NodeResult | None:
    longest = max(("top_stacks", "top_holders", "coverage", "breakdown"), key=lambda name: len(getattr(result, name)))
    finds = getattr(result, longest)
    return result.model_copy(update={longest: finds[:-1]}) if finds else None


def _size_bytes(result: NodeResult) -> int:
    return len(json.dumps(result.to_json_object()).encode())
