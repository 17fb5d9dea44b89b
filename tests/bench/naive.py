"""The obvious tracer: a tracepoint program for each event, a hash by frame, a stack for every allocation."""

import sys
import time

from bcc import BPF

SOURCE = """
#include <uapi/linux/ptrace.h>
BPF_HASH(blocks, u64, u64, 1000000);
BPF_STACK_TRACE(stacks, 16384);
TRACEPOINT_PROBE(kmem, mm_page_alloc) {
  u64 frame = args->pfn, stack = stacks.get_stackid(args, 0);
  blocks.update(&frame, &stack);
  return 0;
}
TRACEPOINT_PROBE(kmem, mm_page_free) {
  u64 frame = args->pfn;
  blocks.delete(&frame);
  return 0;
}
"""

bpf = BPF(text=SOURCE)
print("tracing", flush=True)
sys.stdin.readline()
time.sleep(0)
