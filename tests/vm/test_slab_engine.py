"""Slabs on a kernel and with options that the other tests do not boot: planted objects are counted exactly."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from local_cluster import guest_kernel
from support.guest import GuestRun, boot
from support.guest_calls import CALLS, MODULES
from support.slab_comparison import check_caches

pytestmark = pytest.mark.timeout(900)  # the first test of each variant boots it
CALL = ("slabs", "support.guest_slab_census", "slab_census", ())
LARGE_KMALLOC_BYTES = 2 << 20


@dataclass(frozen=True)
class Variant:
    """A Debian release, and options on the kernel's command line."""

    suite: str
    arguments: tuple[str, ...]


VARIANTS = {
    # Linux 5.10: a slab is a struct page. No random addresses; two caches with red zones, poison and owners.
    "before-struct-slab": Variant("bullseye", ("nokaslr", "slub_debug=FZPU,skbuff_head_cache,dentry")),
    # Linux 7.x: all caches so, and none merged.
    "debug": Variant("sid", ("slab_debug=FZPU", "slab_nomerge")),
}


def boot_variant(variant: Variant, work: Path) -> dict[str, Any]:
    """The report of guest_slab_census.py in a guest. `work` is an empty folder, which gets the guest's console."""
    (work / MODULES).mkdir()
    (work / CALLS).write_text(json.dumps([CALL]))
    reports, _, _ = boot(
        guest_kernel.provide(variant.suite),
        "support.guest_calls",
        work,
        extra=(CALLS, MODULES),
        kernel_arguments=variant.arguments,
    )
    report: dict[str, Any] = reports[CALL[0]]
    assert "error" not in report, report["error"]
    answer: dict[str, Any] = report["answer"]
    return answer


@pytest.fixture(scope="session", params=VARIANTS)
def slabs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guests: list[GuestRun]
) -> dict[str, Any]:
    return boot_variant(VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


def test_planted_objects_are_counted_exactly(slabs: dict[str, Any]) -> None:
    assert slabs["counted"] == slabs["planted"]
    assert slabs["sees_cpu_lists"]
    assert slabs["uncertain_objects"] <= 0.001 * slabs["planted"]  # lists that the guest itself kept changing


def test_the_caches_agree_with_slabinfo(slabs: dict[str, Any]) -> None:
    check_caches(slabs)


def test_the_sum_of_slabs_is_the_kernels(slabs: dict[str, Any]) -> None:
    """Except for large kmalloc, which meminfo counts as slab."""
    difference_bytes = slabs["meminfo_bytes"] - slabs["slab_bytes"]
    assert -0.01 * slabs["meminfo_bytes"] <= difference_bytes <= LARGE_KMALLOC_BYTES + 0.01 * slabs["meminfo_bytes"]
