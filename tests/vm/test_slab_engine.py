"""Slabs on a kernel and with options that the other tests do not boot: planted objects are counted exactly."""

from typing import Any

import pytest

from support.guest import WAIT_SECONDS
from support.guest_pool import GuestPool
from support.guest_variants import VARIANTS
from support.slab_comparison import check_caches

LARGE_KMALLOC_BYTES = 2 << 20

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each variant waits for its boot


@pytest.fixture(scope="session", params=VARIANTS)
def variant(request: pytest.FixtureRequest, guest_pool: GuestPool) -> dict[str, Any]:
    """The report of guest_slab_census.py in a guest."""
    report: dict[str, Any] = guest_pool.result(("variant", request.param))
    return report


def test_planted_objects_are_counted_exactly(variant: dict[str, Any]) -> None:
    assert variant["counted"] == variant["planted"]
    assert variant["sees_cpu_lists"]
    assert variant["uncertain_objects"] <= 0.001 * variant["planted"]  # lists that the guest itself kept changing


def test_the_caches_agree_with_slabinfo(variant: dict[str, Any]) -> None:
    check_caches(variant)


def test_the_sum_of_slabs_is_the_kernels(variant: dict[str, Any]) -> None:
    """Except for large kmalloc, which meminfo counts as slab."""
    difference_bytes = variant["meminfo_bytes"] - variant["slab_bytes"]
    assert -0.01 * variant["meminfo_bytes"] <= difference_bytes <= LARGE_KMALLOC_BYTES + 0.01 * variant["meminfo_bytes"]
