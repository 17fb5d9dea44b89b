"""Keeps a status small: etcd and every watcher carry all of it, all the time."""

import json
from collections.abc import Sequence

from memdiag_api.diagnosis import NodeResult

MAX_RESULTS_BYTES = 60 * 1024
"""Of the 64 KiB that a status may have; the rest is for conditions and references."""


def fit(results: Sequence[NodeResult], limit_bytes: int = MAX_RESULTS_BYTES) -> tuple[list[NodeResult], bool]:
    """`results` within `limit_bytes` of JSON, and whether anything was left off: the smallest finds go first."""
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
