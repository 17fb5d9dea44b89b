"""What findings about a container say would come back, and what comes back when all of its processes are killed."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from memdiag_api.findings import Finding
from memdiag_api.memory_classes import ClassName
from planted.memory import MIB, PlantedMemory
from support.freed import TOLERANCE, bytes_back, findings, freed_by, freed_bytes, kill_cgroup, largest, pids_in
from support.memory_cgroup import ContainerCgroup, container_cgroup

LOADS = (
    ("forked_anon", 300 * MIB),
    ("anon", 300 * MIB),
    ("page_tables", 96 * MIB),
    *[("pipes", 48 * MIB)] * 4,
)
"""Two processes share the first. None of the last is large enough for a finding of its own."""
CLASSES = (ClassName.ANON_PAGES, ClassName.PAGE_TABLES, ClassName.ALLOC_PAGE)


@dataclass(frozen=True, slots=True)
class Planted:
    """All loads at once, so that one run sees them."""

    container: ContainerCgroup
    findings: list[Finding]

    def of(self, memory_class: str) -> Finding:
        """The container's largest finding of a class."""
        return largest(
            self.findings,
            lambda one: (
                one.memory_class == memory_class
                and one.owner is not None
                and one.owner.container_id == self.container.container_id
            ),
        )


@pytest.fixture
def planted() -> Iterator[Planted]:
    with container_cgroup() as container, ExitStack() as loads:
        loads.callback(kill_cgroup, container.path)
        for kind, size_bytes in LOADS:
            load = loads.enter_context(PlantedMemory(kind, size_bytes))
            container.add(load.pid)
            load.plant()
        yield Planted(container, findings())


def test_killing_the_container_brings_back_what_its_findings_say(planted: Planted) -> None:
    """Anonymous memory once, though two processes have it, their page tables and their pipes: three findings."""
    of_class = {name: planted.of(name) for name in CLASSES}
    for finding in of_class.values():
        assert f"container {planted.container.container_id[:12]}" in freed_by(finding).action
    expected_bytes = {name: freed_bytes(finding) for name, finding in of_class.items()}
    path = planted.container.path
    back = bytes_back(lambda: kill_cgroup(path), sum(expected_bytes.values()), *CLASSES, ended=set(pids_in(path)))
    assert expected_bytes == pytest.approx(back, rel=TOLERANCE)
