"""All parsers of kernel text either return a result for a damaged file or raise ProcFormatError."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_node.procfs.allocinfo import parse_allocinfo
from memdiag_node.procfs.buddyinfo import parse_buddyinfo
from memdiag_node.procfs.cgroup import parse_cgroup
from memdiag_node.procfs.cpulist import parse_cpu_count
from memdiag_node.procfs.drm_fdinfo import parse_drm_fdinfo
from memdiag_node.procfs.errors import ProcFormatError
from memdiag_node.procfs.iomem import parse_iomem, parse_present_pages
from memdiag_node.procfs.kernel_log import parse_first_chunk_pages_per_cpu
from memdiag_node.procfs.machine_meminfo import parse_machine_meminfo
from memdiag_node.procfs.machine_vmstat import parse_machine_vmstat
from memdiag_node.procfs.meminfo import parse_meminfo
from memdiag_node.procfs.nfnetlink_queue import parse_nfnetlink_queue
from memdiag_node.procfs.oom_messages import parse_oom_messages
from memdiag_node.procfs.page_owner import parse_page_owner_stacks
from memdiag_node.procfs.status import parse_status
from memdiag_node.procfs.swaps import parse_swaps
from memdiag_node.procfs.uptime import parse_uptime_seconds
from memdiag_node.procfs.vmallocinfo import pages_by_caller, parse_vmallocinfo
from memdiag_node.procfs.vmstat import parse_vmstat
from memdiag_node.procfs.zoneinfo import parse_zoneinfo
from memdiag_node.procfs.zram import parse_mm_stat
from support import machine_files
from support.cgroup_paths import CGROUP_FILES
from support.fixtures import RECORDED

OOM_LOG = Path(__file__).parents[3] / "fixtures/oom/linux-6.18-cgroup-v1.log"
Parser = Callable[[bytes], object]

PARSERS: dict[str, tuple[Parser, list[bytes]]] = {
    "meminfo": (parse_meminfo, [(machine / "proc/meminfo").read_bytes() for machine in RECORDED]),
    "vmstat": (parse_vmstat, [(machine / "proc/vmstat").read_bytes() for machine in RECORDED]),
    "zoneinfo": (parse_zoneinfo, [(machine / "proc/zoneinfo").read_bytes() for machine in RECORDED]),
    "vmallocinfo": (parse_vmallocinfo, [(machine / "proc/vmallocinfo").read_bytes()[:4096] for machine in RECORDED]),
    "status": (parse_status, [(machine / "proc/self/status").read_bytes() for machine in RECORDED]),
    "cpulist": (parse_cpu_count, [(machine / "sys/devices/system/cpu/possible").read_bytes() for machine in RECORDED]),
    "kernel_log": (parse_first_chunk_pages_per_cpu, [(machine / "kernel_log").read_bytes() for machine in RECORDED]),
    "oom_messages": (lambda text: parse_oom_messages(text, page_bytes=4096), [OOM_LOG.read_bytes()]),
    "drm_fdinfo": (parse_drm_fdinfo, [b"drm-driver: x\ndrm-client-id: 4\ndrm-total-gtt: 9 MiB\ndrm-memory-vram: 1\n"]),
    "nfnetlink_queue": (parse_nfnetlink_queue, [b"    7   3919    20 1     0     0     0       20  1\n" * 3]),
    "allocinfo": (parse_allocinfo, [machine_files.ALLOCINFO, machine_files.ALLOCINFO_2]),
    "buddyinfo": (parse_buddyinfo, [machine_files.BUDDYINFO]),
    "iomem": (parse_iomem, [machine_files.IOMEM]),
    "zone_pages": (parse_present_pages, [machine_files.ZONES]),
    "machine_meminfo": (parse_machine_meminfo, [machine_files.MEMINFO_EXTRA]),
    "machine_vmstat": (parse_machine_vmstat, [machine_files.VMSTAT_EXTRA]),
    "page_owner": (parse_page_owner_stacks, [machine_files.PAGE_OWNER]),
    "swaps": (parse_swaps, [machine_files.SWAPS]),
    "callers": (lambda text: pages_by_caller(text.splitlines()), [machine_files.VMALLOCINFO]),
    "uptime": (parse_uptime_seconds, [b"3011.54 5120.09\n"]),
    "mm_stat": (parse_mm_stat, [machine_files.MM_STAT]),
    "cgroup": (parse_cgroup, [text for _, text, *_ in CGROUP_FILES]),
}


def mangled(whole: bytes) -> st.SearchStrategy[bytes]:
    """Return `whole` with some parts removed, overwritten, repeated or filled with random bytes."""

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        text = whole
        for _ in range(draw(st.integers(1, 4))):
            start = draw(st.integers(0, len(text)))
            end = draw(st.integers(start, min(len(text), start + 200)))
            put_in = draw(st.one_of(st.just(text[start:end] * 2), st.binary(max_size=40), st.just(b"9" * 5000)))
            text = draw(st.sampled_from([text[:start], text[end:], text[:start] + put_in + text[end:]]))
        return text

    return damaged()


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
def test_a_mangled_file_has_a_result_or_a_format_error(name: str, data: st.DataObject) -> None:
    parse, originals = PARSERS[name]
    text = data.draw(st.sampled_from(originals).flatmap(mangled))
    with contextlib.suppress(ProcFormatError):
        parse(text)


@pytest.mark.parametrize("name", PARSERS)
def test_the_recorded_file_itself_is_read(name: str) -> None:
    parse, originals = PARSERS[name]
    for text in originals:
        assert parse(text)
