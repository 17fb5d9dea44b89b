"""Keeps a status small: etcd stores all of it, and every watcher receives all of it on each write.

In a run on a thousand nodes (Kubernetes limits their names to 63 characters, as label values), the states take up to
150 KiB, the results MAX_RESULTS_BYTES, the rest a few KiB.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

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


_DETAILS = ("top_stacks", "top_holders", "coverage", "breakdown", "pinned_by_pod")
_FINDINGS = ("findings",)


@dataclass(frozen=True, slots=True)
class _Phase:
    """A step of `fit`: the largest result loses the last part of its longest list, until all results fit."""

    of: tuple[str, ...]
    """Lists that lose parts."""
    later_keep: int
    """Parts of the lists that later results keep."""
    first_keep: int | None
    """The same for the first result. None: all of them."""
    first_share: float = 0
    """Share of the limit that the first result may take before it loses anything."""

    def applies(self, at: int, result: NodeResult, size_bytes: int, limit_bytes: int) -> bool:
        """Whether the result at this place loses a part now."""
        keep = self.later_keep if at else self.first_keep
        is_due = at > 0 or size_bytes > self.first_share * limit_bytes
        return keep is not None and is_due and max(len(getattr(result, name)) for name in self.of) > keep


# A first result with half of the limit loses details together with the others: it may be that of a hostile node.
_PHASES = (
    _Phase(_DETAILS, later_keep=0, first_keep=0, first_share=0.5),
    _Phase(_FINDINGS, later_keep=3, first_keep=None),
    _Phase(_DETAILS, later_keep=0, first_keep=0),
    _Phase(_FINDINGS, later_keep=1, first_keep=3),
    _Phase(_FINDINGS, later_keep=0, first_keep=1),
)


def fit(results: Sequence[NodeResult], limit_bytes: int = MAX_RESULTS_BYTES) -> tuple[list[NodeResult], bool]:
    """`results`, most relevant first, within `limit_bytes` of JSON, and whether anything was left off.

    The least important parts go first, see _PHASES. The first result keeps its first finding.
    """
    fitting = list(results)
    sizes = [_size_bytes(one) for one in fitting]
    truncated = False
    for phase in _PHASES:
        while sum(sizes) > limit_bytes:
            able = [at for at, one in enumerate(fitting) if phase.applies(at, one, sizes[at], limit_bytes)]
            if not able:
                break
            at = max(able, key=lambda index: sizes[index])
            fitting[at] = _without_last(fitting[at], phase.of)
            sizes[at] = _size_bytes(fitting[at])
            truncated = True
    while sum(sizes) > limit_bytes and len(fitting) > 1:
        fitting.pop()
        sizes.pop()
        truncated = True
    return fitting, truncated


def _without_last(result: NodeResult, names: Sequence[str]) -> NodeResult:
    longest = max(names, key=lambda name: len(getattr(result, name)))
    return result.model_copy(update={longest: getattr(result, longest)[:-1]})


def _size_bytes(result: NodeResult) -> int:
    return len(json.dumps(result.to_json_object(), ensure_ascii=False).encode(errors="surrogatepass"))
