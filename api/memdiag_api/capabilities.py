"""The Linux capabilities of a node runner (capabilities(7)): what its checks need, as measured in docs/kernels.md.

Everything else that it reads is owned by root, and it runs as root.
"""

RUNNER_CAPABILITIES = (
    "BPF",  # load programs and maps
    "PERFMON",  # let them read kernel memory, attach them to tracepoints and iterators
    "SYSLOG",  # read the kernel log, for the size of the first per-CPU chunk
)


def in_words() -> str:
    """Return the capabilities as a list for a sentence."""
    return f"{', '.join(RUNNER_CAPABILITIES[:-1])} and {RUNNER_CAPABILITIES[-1]}"
