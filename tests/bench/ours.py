"""memdiag's trace, as the runner runs it: it reports when it traces, and at the end its cost."""

import json
import resource
import select
import sys
from pathlib import Path

from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.page_trace import PageTrace
from memdiag_node.trace.settings import TraceSettings


def rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


with PageTrace(TraceSettings(duration_seconds=60), roots=HostRoots()) as trace:
    print("tracing", flush=True)
    while not select.select([sys.stdin], [], [], 1.0)[0]:
        trace.advance()
    traced_rss_bytes = rss_bytes()
    result = trace.finish()
counters = result.counters
print(
    json.dumps(
        {
            "rss_bytes": traced_rss_bytes,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "table_bytes": counters.table_bytes,
            "sampled_share": counters.sampled_share,
            "program_seconds": counters.program_seconds,
            "lost": counters.lost_records + counters.lost_stacks,
            "missed_runs": counters.missed_runs,
        }
    ),
    flush=True,
)
