"""Reading the memory cgroups at the start and at the end of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memdiag_api.containers import ContainerAccount, RemovedCgroups
from memdiag_node.cgroups.accounts import Account, accounts, by_inode
from memdiag_node.cgroups.counters import Counters, read_counters
from memdiag_node.cgroups.removed import removed_cgroups, removed_count
from memdiag_node.cgroups.tree import MemoryCgroup, containers_of, memory_cgroups
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.cpulist import parse_cpu_count, possible_cpus
from memdiag_node.procfs.roots import HostRoots


@dataclass(frozen=True, slots=True)
class CgroupReading:
    """All memory cgroups at one moment."""

    groups: Sequence[MemoryCgroup]
    counters: Counters | None

    @property
    def containers(self) -> dict[int, ContainerIdentity]:
        """The container of each memory cgroup that is a container or inside one, by the cgroup's inode."""
        return containers_of(self.groups)


class CgroupReader:
    """Reads the memory cgroups through `memory`, and keeps what it read at the start."""

    def __init__(self, memory: KernelMemory, at: Mapping[str, int], roots: HostRoots, *, page_bytes: int) -> None:
        """`at` is the result of `account_layout`. Raises OSError or ProcFormatError if the CPUs cannot be read."""
        self._memory = memory
        self._at = at
        self._page_bytes = page_bytes
        self._cpus = len(possible_cpus(roots.sys))
        self._nodes = _node_count(roots)
        self._accounts_before: dict[int, ContainerAccount] | None = None
        self._removed_before: int | None = None

    def start(self) -> None:
        """Read what is compared at the end of the window."""
        reading = self.read()
        self._accounts_before = by_inode(self._accounts(reading, None)) if reading.counters else None
        self._removed_before = removed_count(reading.groups)

    def read(self) -> CgroupReading:
        """Read all memory cgroups now."""
        groups = memory_cgroups(self._memory, self._at)
        counters = read_counters(self._memory, self._at, groups, nodes=self._nodes, page_bytes=self._page_bytes)
        return CgroupReading(groups, counters)

    def accounts(self, reading: CgroupReading) -> list[Account]:
        """Return the account of each container, compared with the start."""
        return self._accounts(reading, self._accounts_before)

    def removed(self, reading: CgroupReading, *, charged_slab: tuple[int, int] | None) -> RemovedCgroups | None:
        """Return the removed cgroups. `charged_slab`: how many have slab objects, and the bytes of these."""
        return removed_cgroups(
            reading.groups,
            reading.counters,
            self._at,
            cpus=self._cpus,
            nodes=self._nodes,
            page_bytes=self._page_bytes,
            removed_before=self._removed_before,
            charged_slab=charged_slab,
        )

    def _accounts(self, reading: CgroupReading, earlier: Mapping[int, ContainerAccount] | None) -> list[Account]:
        if reading.counters is None:
            return []
        return accounts(reading.groups, reading.counters, earlier, page_bytes=self._page_bytes)


def _node_count(roots: HostRoots) -> int:
    """Return the number of NUMA nodes that the machine can have: 1 on a kernel without CONFIG_NUMA."""
    path = roots.sys / "devices/system/node/possible"
    return parse_cpu_count(path.read_bytes(), source=str(path)) if path.exists() else 1
