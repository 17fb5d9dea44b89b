"""Slabs and their objects on a kernel, and with options, that the other tests do not boot."""

from typing import Any

import pytest

from support.guest import WAIT_SECONDS
from support.guest_pool import GuestPool
from support.guest_variants import VARIANTS
from support.slab_comparison import check_caches

LARGE_KMALLOC_BYTES = 2 << 20
ERRORS = 4

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each variant waits for its boot


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest, guest_pool: GuestPool) -> dict[str, Any]:
    """What the steps of a guest returned."""
    found: dict[str, Any] = guest_pool.result(("variant", request.param))
    return found


@pytest.fixture(scope="session")
def census(variant: dict[str, Any]) -> dict[str, Any]:
    """The report of guest_slab_census.py."""
    report: dict[str, Any] = variant["slabs"]
    return report


@pytest.fixture(scope="session")
def traced(variant: dict[str, Any]) -> dict[str, Any]:
    """The report of guest_object_trace.py."""
    report: dict[str, Any] = variant["objects"]
    return report


def test_planted_objects_are_counted_exactly(census: dict[str, Any]) -> None:
    assert census["counted"] == census["planted"]
    assert census["sees_cpu_lists"]
    assert census["uncertain_objects"] <= 0.001 * census["planted"]  # lists that the guest itself kept changing


def test_the_caches_agree_with_slabinfo(census: dict[str, Any]) -> None:
    check_caches(census)


def test_the_sum_of_slabs_is_the_kernels(census: dict[str, Any]) -> None:
    """Except for large kmalloc, which meminfo counts as slab."""
    difference_bytes = census["meminfo_bytes"] - census["slab_bytes"]
    assert -0.01 * census["meminfo_bytes"] <= difference_bytes <= LARGE_KMALLOC_BYTES + 0.01 * census["meminfo_bytes"]


def test_traced_objects_are_counted_within_the_stated_error(traced: dict[str, Any]) -> None:
    assert traced["lost_objects"] == 0
    assert 0 < traced["error_files"] < 0.05 * traced["planted_files"]
    assert abs(traced["files"] - traced["planted_files"]) <= ERRORS * traced["error_files"]
    assert traced["processes"] == [True]


def test_per_cpu_memory_is_traced_with_the_arguments_of_this_kernel(traced: dict[str, Any]) -> None:
    """Linux 5.19 has three more arguments of the tracepoint than Linux 5.10."""
    assert {"SLAB", "PERCPU"} <= set(traced["kinds"])
    assert traced["percpu_allocations"] >= traced["mounts"]
    assert traced["percpu_bytes"] >= 4 * traced["percpu_allocations"]


def test_areas_of_vmalloc_are_traced_where_the_kernel_has_their_tracepoint(
    request: pytest.FixtureRequest, traced: dict[str, Any]
) -> None:
    is_old = "before-struct-slab" in request.node.name
    assert ("VMALLOC" in traced["kinds"]) is not is_old
