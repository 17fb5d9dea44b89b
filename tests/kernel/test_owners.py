"""Owners of memory that processes and containers have, and the findings about them, against loads of known size."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from memdiag_api.evidence import Check, Evidence
from memdiag_api.findings import FindingKind
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, ClassShare
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.file_cache import file_cache
from memdiag_node.findings.page_tables import page_tables
from memdiag_node.findings.process_memory import process_memory
from memdiag_node.findings.shared_memory import shared_memory
from memdiag_node.findings.thresholds import MIB, Thresholds
from memdiag_node.owners.processes import scan_processes
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.run import measure
from memdiag_node.settings import Settings
from memdiag_node.time_budget import Stop
from planted.memory import PlantedMemory
from support.machine_noise import too_busy
from support.memory_cgroup import ContainerCgroup, container_cgroup

TOLERANCE = 0.05
FORKED_BYTES = 300 * MIB
ANON_BYTES = 128 * MIB
FILE_BYTES = 64 * MIB
SHMEM_BYTES = 96 * MIB
TABLE_BYTES = 80 * MIB  # for 40 GiB of address space
STACK_BYTES = 16 * MIB  # 1,024 threads
ROUNDS = 6
THRESHOLDS = Thresholds()


def measured(*checks: Check, roots: HostRoots | None = None) -> Evidence:
    settings = Settings(run_id="owners", node_name="here", checks=checks, duration_seconds=1.0)
    return measure(settings, roots=roots or HostRoots(), stop=Stop(), progress=lambda _: None)


@dataclass(frozen=True, slots=True)
class Planted:
    """The loads: in a container anonymous memory, file cache and shared memory, outside of it the others."""

    container: ContainerCgroup
    pids: dict[str, int]
    evidence: Evidence
    without_kernel_memory: Evidence


@pytest.fixture(scope="module")
def sys_without_btf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A view of /sys without the description of the kernel's structures, which all reading of its memory needs."""
    view = tmp_path_factory.mktemp("sys")
    (view / "kernel").mkdir()
    for path in [*Path("/sys").iterdir(), *Path("/sys/kernel").iterdir()]:
        if path.name not in {"kernel", "btf"}:
            (view / path.relative_to("/sys")).symlink_to(path)
    return view


@pytest.fixture(scope="module")
def planted(sys_without_btf: Path) -> Iterator[Planted]:
    """All loads at once, so that one run sees them."""
    with container_cgroup() as container, ExitStack() as loads:
        pids = {}
        for kind, size_bytes, is_inside in (
            ("anon", ANON_BYTES, True),
            ("file", FILE_BYTES, True),
            ("shmem", SHMEM_BYTES, True),
            ("forked_anon", FORKED_BYTES, False),
            ("page_tables", TABLE_BYTES, False),
            ("thread_stacks", STACK_BYTES, False),
        ):
            load = loads.enter_context(PlantedMemory(kind, size_bytes))
            if is_inside:
                container.add(load.pid)
            load.plant()
            pids[kind] = load.pid
        evidence = measured(Check.BREAKDOWN, Check.KERNEL_OBJECTS, Check.OWNERS, Check.CONTAINERS)
        without_kernel_memory = measured(Check.BREAKDOWN, Check.OWNERS, roots=HostRoots(sys=sys_without_btf))
        yield Planted(container, pids, evidence, without_kernel_memory)


def class_of(evidence: Evidence, name: str) -> ClassOwners:
    (found,) = [one for one in evidence.owners if one.memory_class == name]
    assert sum(one.size_bytes for one in found.owners) <= found.explained_bytes <= found.size_bytes
    return found


def share_of(evidence: Evidence, name: str, chosen: Callable[[ClassShare], bool]) -> ClassShare:
    (share,) = [one for one in class_of(evidence, name).owners if chosen(one)]
    return share


def in_container(planted: Planted) -> Callable[[ClassShare], bool]:
    return lambda share: share.owner.container_id == planted.container.container_id


@pytest.mark.parametrize(("name", "size_bytes"), [(ClassName.FILE_CACHE, FILE_BYTES), (ClassName.SHMEM, SHMEM_BYTES)])
def test_a_container_has_what_it_is_charged_for(planted: Planted, name: str, size_bytes: int) -> None:
    share = share_of(planted.evidence, name, in_container(planted))
    assert share.size_bytes == pytest.approx(size_bytes, rel=TOLERANCE)
    assert share.owner.pod_uid == planted.container.pod_uid
    assert share.owner.processes == 3


def test_a_container_has_the_anonymous_memory_of_its_processes(planted: Planted) -> None:
    """Including that of their interpreters, which was charged elsewhere before they were moved here."""
    share = share_of(planted.evidence, ClassName.ANON_PAGES, in_container(planted))
    pids = [planted.pids[kind] for kind in ("anon", "file", "shmem")]
    assert share.size_bytes == pytest.approx(sum(map(rss_anon_bytes, pids)), rel=TOLERANCE)
    assert share.size_bytes > ANON_BYTES


def test_the_account_of_a_container_names_its_largest_files(planted: Planted) -> None:
    (account,) = [one for one in planted.evidence.containers if one.container_id == planted.container.container_id]
    (memfd,) = [one for one in account.files if "planted" in one.path]
    assert memfd.cached_bytes == pytest.approx(SHMEM_BYTES, rel=TOLERANCE)


def rss_anon_bytes(pid: int) -> int:
    (line,) = [one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("RssAnon:")]
    return int(line.split()[1]) << 10


def test_memory_that_a_fork_shares_is_counted_once(planted: Planted) -> None:
    share = share_of(
        planted.evidence, ClassName.ANON_PAGES, lambda one: one.owner.pid in forked_pids(planted.pids["forked_anon"])
    )
    assert share.size_bytes == pytest.approx(rss_anon_bytes(planted.pids["forked_anon"]), rel=TOLERANCE)
    assert share.owner.processes == 2


def forked_pids(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid, *map(int, children)}


def test_page_tables_belong_to_the_process_that_maps(planted: Planted) -> None:
    share = share_of(planted.evidence, ClassName.PAGE_TABLES, lambda one: one.owner.pid == planted.pids["page_tables"])
    assert share.size_bytes == pytest.approx(TABLE_BYTES, rel=TOLERANCE)


def test_kernel_stacks_belong_to_the_process_with_the_threads(planted: Planted) -> None:
    share = share_of(
        planted.evidence, ClassName.KERNEL_STACK, lambda one: one.owner.pid == planted.pids["thread_stacks"]
    )
    assert share.size_bytes == pytest.approx(STACK_BYTES, rel=TOLERANCE)
    found = class_of(planted.evidence, ClassName.KERNEL_STACK)
    assert found.explained_bytes >= (1 - TOLERANCE) * found.size_bytes


def test_without_kernel_memory_the_processes_of_a_container_are_added_up(planted: Planted) -> None:
    """Only /proc is read then: RssAnon instead of charges, and the parent instead of the address space."""
    evidence = planted.without_kernel_memory
    share = share_of(evidence, ClassName.ANON_PAGES, in_container(planted))
    assert ANON_BYTES <= share.size_bytes <= ANON_BYTES + 3 * 16 * MIB  # and the interpreter of each
    forked = forked_pids(planted.pids["forked_anon"])
    (with_fork,) = [one for one in class_of(evidence, ClassName.ANON_PAGES).owners if one.owner.pid in forked]
    counted_bytes = sum(one.rss_anon_bytes for one in scan_processes(Path("/proc")).processes)
    assert with_fork.owner.processes >= len(forked)  # and other processes of this interpreter
    assert with_fork.size_bytes <= counted_bytes - FORKED_BYTES / 2


def test_what_is_explained_is_most_of_it(planted: Planted) -> None:
    """The rest of the classes is what other processes shared or freed meanwhile, and page tables of the kernel."""
    for name in (ClassName.ANON_PAGES, ClassName.PAGE_TABLES, ClassName.SHMEM):
        found = class_of(planted.evidence, name)
        assert found.explained_bytes >= 0.9 * found.size_bytes


def test_the_findings_name_them(planted: Planted) -> None:
    evidence, processes = planted.evidence, scan_processes(Path("/proc")).processes
    limits = {"thresholds": THRESHOLDS, "mem_total_bytes": evidence.host.mem_total_bytes}
    files = evidence.census.files if evidence.census else None
    assert files is not None
    drafts: list[Draft] = [
        *process_memory(evidence.owners, processes, **limits),  # type: ignore[arg-type]
        *page_tables(evidence.owners, processes, **limits),  # type: ignore[arg-type]
        *file_cache(evidence.owners, files, **limits),  # type: ignore[arg-type]
        *shared_memory(evidence.owners, files, **limits),  # type: ignore[arg-type]
    ]
    by_owner = {
        (one.kind, one.memory_class, one.owner.pid or one.owner.container_id): one for one in drafts if one.owner
    }
    container_id = planted.container.container_id
    in_container = by_owner[FindingKind.PROCESS_MEMORY, ClassName.ANON_PAGES, container_id]
    assert container_id[:12] in in_container.sentence
    memfd = by_owner[FindingKind.SHARED_MEMORY, ClassName.SHMEM, planted.pids["shmem"]]
    assert memfd.size_bytes == pytest.approx(SHMEM_BYTES, rel=TOLERANCE)
    assert memfd.owner is not None
    assert memfd.owner.container_id == container_id
    assert memfd.owner.fds
    sizes = {one.name: one.size_bytes for one in (evidence.breakdown.classes if evidence.breakdown else ())}
    for name in {one.memory_class for one in drafts}:
        assert sum(one.claimed_bytes[name] for one in drafts if one.memory_class == name) <= sizes[name]


def test_ending_the_owner_brings_back_what_was_said() -> None:
    """Other processes start and end meanwhile: one of several rounds must have little of that."""
    differences = []
    for _ in range(ROUNDS):
        said_bytes, freed_bytes = said_and_freed_bytes()
        differences.append(abs(said_bytes - freed_bytes))
        if differences[-1] <= 0.1 * said_bytes:
            return
    raise too_busy(f"what was freed differed by {format_bytes(min(differences))} or more in each of {ROUNDS} rounds")


def said_and_freed_bytes() -> tuple[int, int]:
    with PlantedMemory("forked_anon", FORKED_BYTES) as load:
        load.plant()
        pids = forked_pids(load.pid)
        evidence = measured(Check.BREAKDOWN, Check.KERNEL_OBJECTS, Check.OWNERS)
        share = share_of(evidence, ClassName.ANON_PAGES, lambda one: one.owner.pid in pids)
        before = anon_bytes()
    while any(Path(f"/proc/{pid}/status").exists() for pid in pids):  # until the test's own time limit
        time.sleep(0.05)
    return share.size_bytes, before - anon_bytes()


def anon_bytes() -> int:
    return parse_meminfo(Path("/proc/meminfo").read_bytes()).anon_bytes
