"""memdiag's traces, as the runner runs them: reports when they have started, and at the end their cost."""

import json
import os
import resource
import select
import sys
from contextlib import ExitStack
from pathlib import Path

from memdiag_api.evidence import Check
from memdiag_node.allocation_traces import AllocationTraces
from memdiag_node.attempts import Attempts
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.slab.layout import object_layout
from memdiag_node.slab.lookup import open_slab_memory
from memdiag_node.time_budget import Stop
from memdiag_node.trace.merged import merge
from memdiag_node.trace.settings import TraceSettings


def rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


attempts = Attempts([Check.ALLOC_PAGE_TRACE], lambda message: print(message, file=sys.stderr))
with ExitStack() as opened:
    at = object_layout(Btf.load())
    slabs = open_slab_memory(at, sorted(os.sched_getaffinity(0)), opened)
    traces = AllocationTraces.start(
        TraceSettings(duration_seconds=60), opened=opened, attempts=attempts, roots=HostRoots(), slabs=slabs
    )
    assert traces is not None
    assert not attempts.needs, attempts.needs
    print("tracing", flush=True)
    while not select.select([sys.stdin], [], [], 0.25)[0]:
        traces.advance()
    traced_rss_bytes = rss_bytes()
    traces.stop_recording()
    pages, objects = traces.finish(Stop(30))
    assert pages is not None, attempts.needs
    assert objects is not None, attempts.needs
counters = merge(pages, objects, top_n=1).counters
print(
    json.dumps(
        {
            "rss_bytes": traced_rss_bytes,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "table_bytes": counters.table_bytes,
            "sampled_share": counters.sampled_share,
            "program_seconds": counters.program_seconds + counters.object_program_seconds,
            "lost": counters.lost_records + counters.lost_stacks + counters.lost_objects,
            "missed_runs": counters.missed_runs,
        }
    ),
    flush=True,
)
