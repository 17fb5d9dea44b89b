"""Processes made by hand."""

from memdiag_node.owners.process_memory import ProcessMemory
from memdiag_node.procfs.cgroup import ContainerIdentity

NO_CONTAINER = ContainerIdentity("", "")


def process(
    pid: int,
    comm: str = "a",
    *,
    parent_pid: int = 1,
    identity: ContainerIdentity = NO_CONTAINER,
    anon: int = 0,
    swap: int = 0,
    page_tables: int = 0,
    hugetlb: int = 0,
    threads: int = 1,
    family: int | None = None,
    is_self: bool = False,
) -> ProcessMemory:
    """Sizes in bytes. Without `family`, it shares nothing with any other."""
    return ProcessMemory(
        pid=pid,
        comm=comm,
        parent_pid=parent_pid,
        identity=identity,
        rss_anon_bytes=anon,
        rss_shmem_bytes=0,
        swap_bytes=swap,
        page_table_bytes=page_tables,
        hugetlb_bytes=hugetlb,
        threads=threads,
        is_self=is_self,
        family=pid if family is None else family,
    )
