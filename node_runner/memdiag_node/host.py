"""The measured host, as reported by itself."""

import os

from memdiag_api.evidence import Host
from memdiag_node.procfs.cpulist import online_cpus
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.procfs.uptime import parse_uptime_seconds


def read_host(roots: HostRoots, node_name: str) -> Host:
    """Describe the host. `node_name`: its name in the cluster, or its host name outside of one.

    Raises OSError if a file is missing, ProcFormatError if one is malformed.
    """
    meminfo = roots.proc / "meminfo"
    return Host(
        node_name=node_name,
        kernel_release=(roots.proc / "sys/kernel/osrelease").read_text().strip(),
        architecture=os.uname().machine,
        cpus=len(online_cpus(roots.sys)),
        mem_total_bytes=parse_meminfo(meminfo.read_bytes(), source=str(meminfo)).mem_total_bytes,
        page_size_bytes=os.sysconf("SC_PAGE_SIZE"),
        boot_id=(roots.proc / "sys/kernel/random/boot_id").read_text().strip(),
    )


def read_uptime_seconds(roots: HostRoots) -> float | None:
    """Return the time since boot in seconds. None if it cannot be read."""
    uptime = roots.proc / "uptime"
    try:
        return parse_uptime_seconds(uptime.read_bytes(), source=str(uptime))
    except (OSError, ProcFormatError):
        return None
