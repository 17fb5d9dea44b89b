"""In a guest: plant the cases that need a kernel module or a hypervisor, and diagnose each (docs/accuracy.md).

tests/vm/test_accuracy.py judges the documents, with the judge of `make accuracy`.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planted.cases.case import HEALTHY, Answer, Case, PlantedTruth
from planted.leaking_modules import leaked_objects, lost_packets, lost_pages, unload_module
from planted.sockets.common import MIB, PAGE_BYTES, wait_for
from support.guest_calls import BUILT
from support.guest_program import runner

BALLOON_MODULE, BALLOON_BYTES = "virtio_balloon", 256 * MIB
_WINDOW = "5s"
_RUNNER = "support.patient_runner"
"""The usual checks and settings. Only the slabs may take longer to read, for next to another guest they do."""
_LEAKED_OBJECTS = 2_500_000
"""Of 64 bytes: together more than the size of one slab cache that rules out False (docs/verdicts.md)."""
_LOST_PACKETS, _PACKET_ORDER = 10_000, 1
_LOST_PAGES = 300 * MIB // PAGE_BYTES
"""More than the large size, which rules out False as well."""
_CACHES = ("kmalloc-64", *(f"kmalloc-rnd-{number:02}-64" for number in range(1, 16)))
_INFLATE_SECONDS = 120


@contextlib.contextmanager
def _balloon() -> Iterator[PlantedTruth]:
    """Its driver was loaded at boot, and inflates it in the background. Unloading it gives everything back."""
    wait_for(lambda: _ballooned_bytes() >= BALLOON_BYTES, "the balloon", seconds=_INFLATE_SECONDS)
    try:
        yield PlantedTruth(
            Answer.HARMLESS, ("Balloon",), ("Balloon", ""), size_bytes=_ballooned_bytes(), owning_kinds=("Balloon",)
        )
    finally:
        unload_module(BALLOON_MODULE)


def _ballooned_bytes() -> int:
    figures = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return (int(figures["balloon_inflate"]) - int(figures["balloon_deflate"])) * PAGE_BYTES


@contextlib.contextmanager
def _leaked_objects() -> Iterator[PlantedTruth]:
    with leaked_objects(BUILT, _LEAKED_OBJECTS) as planted:
        yield PlantedTruth(
            Answer.LEAK,
            ("LargeClass",),
            ("SUnreclaim",),
            size_bytes=planted.objects * planted.object_bytes,
            names=_CACHES,
        )


@contextlib.contextmanager
def _lost_packets() -> Iterator[PlantedTruth]:
    with lost_packets(BUILT, _LOST_PACKETS, _PACKET_ORDER) as planted:
        yield PlantedTruth(
            Answer.LEAK,
            ("LostPackets",),
            ("AllocPage",),
            size_bytes=planted.charge_bytes,
            names=("lo",),
            other_classes=("SUnreclaim",),
        )


@contextlib.contextmanager
def _lost_pages() -> Iterator[PlantedTruth]:
    with lost_pages(BUILT, _LOST_PAGES) as planted:
        yield PlantedTruth(
            Answer.LEAK, ("Unexplained",), ("AllocPage",), size_bytes=planted.size_bytes, owning_kinds=("Unexplained",)
        )


@contextlib.contextmanager
def _healthy() -> Iterator[PlantedTruth]:
    yield HEALTHY


CASES = {
    case.name: case
    for case in (
        Case("balloon", "256 MiB that the hypervisor took back", _balloon),  # the first: it is there from the boot on
        Case("healthy_guest", "nothing is planted", _healthy, is_healthy=True),
        Case("module_objects", "2.5 million objects of a module, in kmalloc objects of 64 bytes", _leaked_objects),
        Case("module_packets", "10,000 packets that a module lost", _lost_packets),
        Case("module_pages", "300 MiB of single pages that a module lost before the window", _lost_pages),
    )
}


def diagnose(name: str) -> dict[str, Any]:
    """What was planted, and the run of memdiag-node while it was."""
    with CASES[name].plant() as truth:
        run = runner("--duration", _WINDOW, "--output", "json", program=_RUNNER)
    print("\n".join(f"  {seconds:6.1f} {line}" for seconds, line in run["stderr"]), flush=True)
    document = json.loads(run["stdout"]) if run["stdout"] else None
    return {"truth": asdict(truth), "run": run | {"stdout": ""}, "document": document}


def truth_of(answer: dict[str, Any]) -> PlantedTruth:
    """The truth of an answer that came through JSON."""
    truth: dict[str, Any] = answer["truth"]
    fields: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in truth.items()}
    fields["answer"] = Answer(truth["answer"])
    return PlantedTruth(**fields)
