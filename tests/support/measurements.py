"""The host and the window of a run that nobody made, for conclusions from measurements made by hand."""

from datetime import UTC, datetime

from memdiag_api.evidence import Host, Window

PAGE_BYTES = 4096
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def host_of(mem_total_bytes: int, *, node_name: str = "node-1") -> Host:
    return Host(
        node_name=node_name,
        kernel_release="6.18",
        architecture="x86_64",
        cpus=2,
        mem_total_bytes=mem_total_bytes,
        page_size_bytes=PAGE_BYTES,
        boot_id="b",
    )


def window_of(seconds: float) -> Window:
    return Window(start_time=START, end_time=START, requested_seconds=seconds, traced_seconds=seconds)
