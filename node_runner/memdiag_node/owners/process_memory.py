"""The memory of one process."""

from dataclasses import dataclass

from memdiag_node.procfs.cgroup import ContainerIdentity


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """The memory of one process; its threads share it. Sizes as in /proc/PID/status, which may lag a little."""

    pid: int
    comm: str
    parent_pid: int
    identity: ContainerIdentity
    """IDs are empty if it is in no container."""
    rss_anon_bytes: int
    """Including what it shares with its forks."""
    rss_shmem_bytes: int
    """Shared memory that it maps: shows who uses some, not who has it."""
    swap_bytes: int
    page_table_bytes: int
    hugetlb_bytes: int
    threads: int
    is_self: bool = False
    """Whether it is this run."""
    family: int = 0
    """Only processes with the same number can share anonymous memory (owners.families). 0: not known."""
