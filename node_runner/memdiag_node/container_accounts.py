"""The check Containers: the memory cgroups at the start and at the end of the window.

The checks Owners and KernelObjects read them too, to name the containers that are charged.
"""

import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from memdiag_api.containers import RemovedCgroups
from memdiag_api.evidence import Check
from memdiag_node.attempts import Attempts
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.cgroups.accounts import Account
from memdiag_node.cgroups.reader import CgroupReader
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.time_budget import Stop

_CHECKS = (Check.CONTAINERS, Check.OWNERS, Check.KERNEL_OBJECTS)
"""The checks that need the memory cgroups, the first of which reports an error."""


OpenedMemory = tuple[KernelMemory, Mapping[str, int]]
"""Kernel memory, and the offsets of `account_layout` in it."""


@dataclass(frozen=True, slots=True)
class ReadAccounts:
    """What was read at the end of the window."""

    containers: dict[int, ContainerIdentity] = field(default_factory=dict)
    """The container of each memory cgroup, by the inode of the cgroup."""
    accounts: list[Account] = field(default_factory=list)
    """The account of each container, largest usage first. Empty without the check."""
    removed_cgroups: RemovedCgroups | None = None


@dataclass(frozen=True, slots=True)
class ContainerAccounts:
    """The memory cgroups as they were read at the start, for the check that reports an error."""

    attempts: Attempts
    check: Check
    reader: CgroupReader

    def read(self, objects: ObjectFindings | None) -> ReadAccounts:
        """Read them for the last time. `objects`: what the census found, with the slab charged to removed cgroups."""
        charges = objects.slab.charges if objects else None
        charged_slab = (charges.removed_cgroups, charges.removed_bytes) if charges else None
        has_accounts = self.check is Check.CONTAINERS
        with self.attempts.step(self.check, "the last reading of the memory cgroups", optional=not has_accounts):
            reading = self.reader.read()
            if not has_accounts:
                return ReadAccounts(reading.containers)
            removed = self.reader.removed(reading, charged_slab=charged_slab)
            return ReadAccounts(reading.containers, self.reader.accounts(reading), removed)
        return ReadAccounts()


def start_accounts(
    attempts: Attempts,
    opened: OpenedMemory | None,
    open_memory: Callable[[], OpenedMemory],
    roots: HostRoots,
    stop: Stop,
) -> ContainerAccounts | None:
    """Read the memory cgroups for the first time; None if no check needs them, or if that fails.

    `opened`: kernel memory that another check opened. `open_memory` opens it for the check Containers alone. If that
    is not possible, preflight has reported why, and the other checks name containers by their processes.
    """
    check = next((one for one in _CHECKS if one in attempts.checks), None)
    if check is None or (opened is None and check is not Check.CONTAINERS):
        return None
    if stop.is_set():
        if check is Check.CONTAINERS:
            attempts.skip(check)
        return None
    with attempts.step(check, "the first reading of the memory cgroups", optional=check is not Check.CONTAINERS):
        memory, at = opened or open_memory()
        reader = CgroupReader(memory, at, roots, page_bytes=mmap.PAGESIZE)
        reader.start()
        return ContainerAccounts(attempts, check, reader)
    return None
