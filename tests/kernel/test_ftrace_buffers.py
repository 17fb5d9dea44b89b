"""Buffers of ftrace: found without a mount of tracefs, with the pages that the trace saw allocated."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memdiag_api.evidence import HolderKind
from memdiag_node.conclusion.join import join_blocks
from memdiag_node.holders.registry import other_holders
from memdiag_node.holding import Holding, unique_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.procfs.roots import HostRoots
from memdiag_node.sockets.scanner import SocketScanner
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.settings import TraceSettings
from planted.sockets.common import MIB, PAGE_BYTES
from support.sockets import holder_layout, owner_of

NAME = "memdiag-planted"
EACH_BYTES = 8 * MIB
CPUS = os.cpu_count() or 1


@contextmanager
def instance(mount_point: Path, *, subbuffer_kb: int = 0) -> Iterator[None]:
    """An instance with a buffer of EACH_BYTES for each CPU. tracefs is only mounted to set it up and to remove it."""
    with tracefs(mount_point):
        (mount_point / "instances" / NAME).mkdir()
        if subbuffer_kb:
            (mount_point / "instances" / NAME / "buffer_subbuf_size_kb").write_text(str(subbuffer_kb))
        (mount_point / "instances" / NAME / "buffer_size_kb").write_text(str(EACH_BYTES >> 10))
    try:
        yield
    finally:
        with tracefs(mount_point):
            (mount_point / "instances" / NAME).rmdir()


@contextmanager
def tracefs(mount_point: Path) -> Iterator[None]:
    if subprocess.run(["mount", "-t", "tracefs", "tracefs", str(mount_point)], check=False).returncode:
        pytest.skip("this kernel has no tracefs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


def ftrace_buffers(scanner: SocketScanner, of: str) -> list[Holding]:
    found, not_seen = other_holders(scanner, scanner.scan(), owner_of, holder_layout())
    assert not [note for note in not_seen if "ftrace" in note]
    return [one for one in found if one.holder.kind is HolderKind.FTRACE_BUFFER and of in one.holder.description]


def test_a_buffer_is_found_with_its_instance_and_its_pages(btf: Btf, scanner: SocketScanner, tmp_path: Path) -> None:
    settings = TraceSettings(duration_seconds=2.0, cpu_budget_share=0.0)  # records everything
    with PageTrace(settings, roots=HostRoots()) as trace, instance(tmp_path):
        (held,) = ftrace_buffers(scanner, NAME)
        result = trace.finish()
    assert held.holder.description.startswith(f"ftrace buffer of the instance {NAME}: ")
    assert held.holder.pinned_bytes == pytest.approx(EACH_BYTES * CPUS, rel=0.02)
    assert unique_bytes([held.blocks], page_bytes=PAGE_BYTES) == held.holder.pinned_bytes
    overlap = join_blocks(result.blocks, [held.blocks], struct_page_bytes=btf.size_bytes("page"), page_bytes=PAGE_BYTES)
    assert overlap.explained_bytes == pytest.approx(held.holder.pinned_bytes, rel=0.02)
    assert ftrace_buffers(scanner, NAME) == []


def test_larger_pages_of_a_buffer_count_whole(btf: Btf, scanner: SocketScanner, tmp_path: Path) -> None:
    if not btf.has_field("trace_buffer", "subbuf_order"):
        pytest.skip("this kernel has buffers of single pages only")
    with instance(tmp_path, subbuffer_kb=32):
        (held,) = ftrace_buffers(scanner, NAME)
    assert held.holder.pinned_bytes == pytest.approx(EACH_BYTES * CPUS, rel=0.02)
    assert {int(order) for order in held.blocks["order"]} == {3}


def test_the_top_instance_is_found(scanner: SocketScanner) -> None:
    (held,) = ftrace_buffers(scanner, "ftrace buffer of the top instance")
    assert held.holder.pinned_bytes >= CPUS * PAGE_BYTES
    assert held.holder.owners == []
