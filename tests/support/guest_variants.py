"""Guests that run the slab census and the object trace only: kernels and options that other tests do not boot."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import guest_kernel
from support.guest import boot
from support.guest_calls import CALLS, MODULES

_CALLS = (
    ("slabs", "support.guest_slab_census", "slab_census", ()),
    ("objects", "support.guest_object_trace", "object_trace", ()),
)


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


def boot_variant(name: str, work: Path) -> dict[str, Any]:
    """The answers of _CALLS in a guest, by name. `work` is an empty folder, which gets the guest's console."""
    variant = VARIANTS[name]
    (work / MODULES).mkdir()
    (work / CALLS).write_text(json.dumps(_CALLS))
    reports, _, _ = boot(
        guest_kernel.provide(variant.suite),
        "support.guest_calls",
        work,
        extra=(CALLS, MODULES),
        kernel_arguments=variant.arguments,
    )
    for report in reports.values():
        assert "error" not in report, report["error"]
    return {name: report["answer"] for name, report in reports.items()}
