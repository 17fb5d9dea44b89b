"""What a kernel module leaks at known rates, as the trace of objects sees it in a guest: cache, function and rate."""

import math
import re
from typing import Any

import pytest

from memdiag_api.evidence import AllocationUnit, Evidence, Stack
from planted.leaking_modules import GROWTH, Growing
from support.guest import WAIT_SECONDS
from support.guest_lab import Answers

TOLERANCE = 0.05
# Of a sample, one figure in 20 is beyond two standard errors, and many are compared; one in 16,000 is beyond four.
ERRORS = 4
KINDS = ("planted_kmalloc", "planted_cache_alloc", "planted_vmalloc", "planted_percpu")

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test boots the guest


@pytest.fixture(scope="module")
def grown(diagnosed: Answers) -> dict[str, Any]:
    found: dict[str, Any] = diagnosed["growth"]
    assert found["run"]["status"] == 0, "\n".join(line for _, line in found["run"]["stderr"])
    return found


@pytest.fixture(scope="module")
def evidence(grown: dict[str, Any]) -> Evidence:
    return Evidence.model_validate(grown["document"])


def planted_by(grown: dict[str, Any], function: str) -> Growing:
    (planted,) = [Growing(**one) for one in grown["planted"] if one["function"] == function]
    return planted


def in_words(stack: Stack) -> str:
    """For the message of a failure."""
    return (
        f"{stack.unit} {stack.memory_class} {stack.slab_cache} {stack.outstanding_bytes} in {stack.outstanding_blocks} "
        f"+-{stack.error_bytes}, {stack.growth_bytes_per_second:.0f} +-{stack.growth_error_bytes_per_second:.0f}/s "
        f"share {stack.sampled_share:.4f}: {' '.join(stack.frames[:5])}"
    )


def stacks_of(evidence: Evidence, planted: Growing) -> list[Stack]:
    """The stacks of objects that the module's function allocated itself. Fails if there are none."""
    named = re.compile(rf"{planted.function}\+\S* \[{GROWTH}\]")
    found = [
        stack for stack in evidence.stacks if stack.unit is AllocationUnit.OBJECTS and named.fullmatch(stack.frames[0])
    ]
    assert found, "\n".join(map(in_words, evidence.stacks))
    return found


@pytest.mark.parametrize("function", KINDS)
def test_class_cache_and_thread_are_the_planted_ones(grown: dict[str, Any], evidence: Evidence, function: str) -> None:
    planted = planted_by(grown, function)
    for stack in stacks_of(evidence, planted):
        assert stack.memory_class == planted.memory_class
        assert re.fullmatch(planted.cache, stack.slab_cache)
        assert not stack.reclaimable
        assert {one.comm for one in stack.processes} == {GROWTH}


@pytest.mark.parametrize("function", KINDS)
def test_bytes_and_growth_are_the_planted_ones(grown: dict[str, Any], evidence: Evidence, function: str) -> None:
    planted = planted_by(grown, function)
    stacks = stacks_of(evidence, planted)
    said = "\n".join(map(in_words, stacks))
    rate = planted.per_second * planted.object_bytes
    for found, truth, errors in (
        (
            sum(one.outstanding_bytes for one in stacks),
            rate * evidence.window.requested_seconds,
            [one.error_bytes for one in stacks],
        ),
        (
            sum(one.growth_bytes_per_second for one in stacks),
            rate,
            [one.growth_error_bytes_per_second for one in stacks],
        ),
    ):
        allowed = max(TOLERANCE * truth, ERRORS * math.hypot(*errors))
        assert abs(found - truth) <= allowed, f"{found:.0f}, not {truth:.0f}: {said}"
