"""Call functions in a guest with one of Debian's kernels, with kernel modules: Debian's, and some built from source.

A test of the census in a guest, with a plant that this machine's kernel cannot have:

    # tests/support/guest_census.py: runs in the guest, so it imports neither pytest nor local_cluster
    def leak_is_named(objects: int) -> dict[str, Any]:
        with leaked_objects(BUILT, objects) as planted:
            return {"planted": asdict(planted), "run": runner("--duration", "0s", "--output", "json")}

    # tests/vm/test_census.py
    @pytest.mark.parametrize("suite", SUITES)
    def test_a_leaking_module_is_named(suite: str, guests: list[GuestRun], tmp_path: Path) -> None:
        calls = {"leak": Call(guest_census.leak_is_named, 100_000)}
        answers = call_in_guest(suite, calls, tmp_path, built_from=leaking_modules.SOURCES)
        found = Evidence.model_validate_json(answers["leak"]["run"]["stdout"])   # and compare with ["planted"]

One boot takes a minute or more, so tests share it: a module-scoped fixture makes all calls of a suite (see
tests/vm/test_planted.py). `runner` is support.guest_program's: memdiag-node with its capabilities and no others.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local_cluster import guest_build
from local_cluster.guest_build import write_module
from support.guest import boot
from support.guest_calls import BUILT, CALLS, MODULES

SUITES = ("bookworm", "trixie", "sid")
"""Linux 6.1, 6.12 and 7.x."""


@dataclass(frozen=True)
class Call:
    """A function to call in the guest: at the top level of a module of tests/planted or tests/support.

    Its arguments and what it returns are JSON.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "arguments", arguments)


@dataclass(frozen=True)
class Answers:
    """What the calls of one boot returned, by name."""

    reports: dict[str, dict[str, Any]]
    release: str
    """The guest's kernel."""
    seconds: float
    """From power on to power off."""

    def __getitem__(self, name: str) -> Any:
        """What the call returned. Raises AssertionError with the guest's traceback if it failed."""
        report = self.reports[name]
        assert "error" not in report, report["error"]
        return report["answer"]


def call_in_guest(
    suite: str,
    calls: Mapping[str, Call],
    work: Path,
    *,
    modules: Sequence[str] = (),
    built_from: Sequence[Path] = (),
    devices: Sequence[str] = (),
) -> Answers:
    """Boot the kernel of a Debian suite, load `modules`, make the calls one after the other, and power off.

    `modules` are loaded with those that they need; what the kernel has built in, or lacks, is left out. Each C file of
    `built_from` is built against the kernel's headers, and is in the guest's folder BUILT, not loaded. `devices` are
    more arguments for QEMU. The folder `work` gets the guest's console. Raises StepError if a module does not compile
    or the guest does not end.
    """
    kernel_build = guest_build.provide(suite)
    for folder in (work / MODULES, work / BUILT.name):
        folder.mkdir()
    for number, file in enumerate(kernel_build.module_files(modules)):
        write_module(file, work / MODULES / f"{number:03}-{file.name.removesuffix('.xz')}")
    for source in built_from:
        compiled = work / f"build-{source.stem}"
        compiled.mkdir()
        kernel_build.compile_module(source, compiled).rename(work / BUILT.name / f"{source.stem}.ko")
    listed = [(name, call.function.__module__, call.function.__name__, call.arguments) for name, call in calls.items()]
    (work / CALLS).write_text(json.dumps(listed))
    extra = (CALLS, MODULES, BUILT.name)
    reports, seconds, _ = boot(kernel_build.kernel, "support.guest_calls", work, extra=extra, devices=devices)
    return Answers(reports, kernel_build.release, seconds)
