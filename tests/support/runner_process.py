"""The process of a runner, as the machine sees it that is its node."""

from contextlib import suppress
from pathlib import Path

from support.bpf import loaded_programs, programs_of
from support.cluster import TestCluster


def is_tracing(cluster: TestCluster, diagnosis: str) -> bool:
    """Whether the diagnosis's runner has loaded its trace: allocations a moment later are seen."""
    run = cluster.try_kubectl("get", "memdiag", diagnosis, "-o", "jsonpath={.status.runID}").stdout
    tracing = {number for number, name in loaded_programs().items() if name == "on_alloc"}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if (
                run
                and any(word.endswith(run.encode()) for word in words)
                and programs_of(int(path.parent.name)) & tracing
            ):
                return True
    return False
