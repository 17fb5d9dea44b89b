"""The guests of the vm tier: what is planted in each, and the order in which they boot."""

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from planted import leaking_modules, nfqueue, protocols
from support import guest_accuracy, guest_census, guest_cgroups, guest_growth, guest_planted, guest_program
from support.guest import NATIVE, run_guest
from support.guest_balloon import balloon
from support.guest_lab import Answers, Call, call_in_guest
from support.guest_pool import GuestPool
from support.guest_variants import boot_variant

_CALLS = {
    "leak": Call(guest_planted.leak),
    "lost": Call(guest_planted.lost),
    "nfqueue": Call(guest_planted.queued_for_verdict),
    "sctp": Call(guest_planted.unread_sctp),
    "ktls": Call(guest_planted.unread_ktls),
    "fragments": Call(guest_planted.fragments),
    "zombie": Call(guest_planted.zombie),
    "neighbour": Call(guest_planted.neighbour),
    "slab_heads": Call(guest_planted.slab_heads),
    "tun": Call(guest_planted.tun),
    "sockmap": Call(guest_planted.sockmap),
    "messages": Call(guest_planted.system_v_messages),
    "trace_buffer": Call(guest_planted.trace_buffer),
    "io_uring": Call(guest_planted.io_uring),
    "maps": Call(guest_planted.maps),
    "memfd": Call(guest_planted.file_in_memory),
    "deleted_file": Call(guest_planted.deleted_file),
    "cgroups": Call(guest_cgroups.accounts),
    "runner": Call(guest_program.runner, "--preflight"),
    "census": Call(guest_census.census),
}
_MODULES = (
    *nfqueue.MODULES,
    *protocols.SCTP_MODULES,
    *protocols.KTLS_MODULES,
    "sch_tbf",
    "tun",
    "veth",
)


def plant_in_guest(suite: str, work: Path) -> Answers:
    """Every load at once, each looked at, and one run of memdiag-node that sees them all."""
    return call_in_guest(suite, _CALLS, work, modules=_MODULES, built_from=leaking_modules.SOURCES)


def diagnose_in_guest(suite: str, work: Path) -> Answers:
    """One case after another, each diagnosed by a run of memdiag-node with its default settings."""
    return call_in_guest(
        suite,
        {
            **{name: Call(guest_accuracy.diagnose, name) for name in guest_accuracy.CASES},
            "growth": Call(guest_growth.diagnose_growth),
        },
        work,
        modules=(guest_accuracy.BALLOON_MODULE,),
        built_from=leaking_modules.SOURCES,
        devices=balloon(work, guest_accuracy.BALLOON_BYTES),
    )


_BOOTS = {"suite": run_guest, "guest": plant_in_guest, "variant": boot_variant, "diagnosed": diagnose_in_guest}
"""By the parameter of a test that selects the guest."""


def _guests_of(item: pytest.Item) -> Iterator[tuple[str, str]]:
    callspec = getattr(item, "callspec", None)
    for name, parameter in callspec.params.items() if callspec else ():
        if name in _BOOTS and parameter != NATIVE:
            yield name, parameter


def what_is_missing() -> str | None:
    """Why no guest can be built and booted here."""
    if os.geteuid() != 0:
        return "the vm tier needs root: its guests' disks are made by mmdebstrap, containerd and mke2fs"
    for program in ("qemu-system-x86_64", "mmdebstrap", "mke2fs"):
        if shutil.which(program) is None:
            return f"the vm tier needs {program}: python3 -m local_cluster prepare qemu-system-x86 e2fsprogs"
    return None


@pytest.fixture(scope="session")
def guest_pool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GuestPool:
    """All guests that the selected tests need, in the order of the tests; skips if none can be booted."""
    if reason := what_is_missing():
        pytest.skip(reason)
    pool = GuestPool()
    for name, parameter in dict.fromkeys(one for item in request.session.items for one in _guests_of(item)):
        work = tmp_path_factory.mktemp(f"{name}-{parameter}")
        pool.add((name, parameter), functools.partial(_BOOTS[name], parameter, work))
    return pool


def boot_meanwhile(request: pytest.FixtureRequest) -> None:
    """Boot the guests that tests of this session need later, while tests run that mostly wait."""
    if what_is_missing() is None and any(_guests_of(item) for item in request.session.items):
        request.getfixturevalue("guest_pool")
