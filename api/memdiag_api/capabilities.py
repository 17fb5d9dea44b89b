"""The Linux capabilities of a node runner (capabilities(7)): all that its checks need, as docs/kernels.md measures it.

Everything else that it reads belongs to root, and it runs as root.
"""

RUNNER_CAPABILITIES = (
    "BPF",  # load programs and maps
    "PERFMON",  # let them read kernel memory, attach them to tracepoints and iterators
    "SYSLOG",  # the kernel log, for the size of the first per-CPU chunk
)


def in_words() -> str:
    """The capabilities as a list in a sentence."""
    return f"{', '.join(RUNNER_CAPABILITIES[:-1])} and {RUNNER_CAPABILITIES[-1]}"
