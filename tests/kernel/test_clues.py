"""Clues to untyped objects on this machine: planted objects are recognized by the functions that they point to."""

import mmap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import numpy as np
import pytest

from memdiag_node.census.clues import clues, frame_clues
from memdiag_node.census.clues.naming import AddressNames, Meaning
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.kernel.modules import module_layout, read_modules
from memdiag_node.kernel.symbols import SymbolReader
from memdiag_node.procfs.cgroup import ContainerIdentity
from memdiag_node.procfs.kpageflags import FrameTable, is_direct, is_head, is_tail
from memdiag_node.procfs.memory_map import read_memory_map
from planted import untyped_objects
from planted.memory import MIB, PlantedMemory
from support.memory_cgroup import container_cgroup
from support.slab_census import opened_memory, take_slab_census

_PLANTED = 3_000
_SAMPLING_ERROR = (
    0.12  # of the planted number: 4 standard errors of a share of 60 % of 1,024 objects, and what vanishes
)
_MIN_BYTES = 64 * 1024


@pytest.fixture(scope="module")
def memory(btf: Btf) -> Iterator[KernelMemory]:
    with opened_memory(btf) as opened:
        yield opened


@pytest.fixture(scope="module")
def names(memory: KernelMemory, btf: Btf) -> Iterator[AddressNames]:
    with SymbolReader() as reader:
        yield AddressNames(memory, reader.lines, read_modules(memory, module_layout(btf), Path("/sys")))


def _read(memory: KernelMemory, btf: Btf, names: AddressNames) -> list[clues.SubjectClues]:
    census = take_slab_census(memory, btf)
    return clues.read_clues(census, clues.fields(btf), names, min_bytes=_MIN_BYTES)


def _objects_with(found: list[clues.SubjectClues], text: str) -> float:
    """The number of objects with a word that points to this, by the clues of all caches."""

    def share(one: clues.SubjectClues) -> float:
        found_there = [clue.share for clue in one.clues if text in clue.text and "which point at" not in clue.text]
        return max(found_there, default=0.0)

    return sum(share(one) * one.objects for one in found)


@pytest.mark.parametrize(
    ("plant", "text"),
    [
        (untyped_objects.pipes, "anon_pipe_buf_release"),
        (untyped_objects.timers, "timerfd_tmrproc"),
        (untyped_objects.array_maps, "array_map_alloc"),
        (untyped_objects.epolls, "objects of filp (open files)"),
    ],
)
def test_planted_objects_are_recognized_and_counted(
    memory: KernelMemory,
    btf: Btf,
    names: AddressNames,
    plant: Callable[[int], AbstractContextManager[None]],
    text: str,
) -> None:
    before = _objects_with(_read(memory, btf, names), text)
    with plant(_PLANTED):
        found = _objects_with(_read(memory, btf, names), text)
    assert found - before == pytest.approx(_PLANTED, rel=_SAMPLING_ERROR)


def test_objects_that_point_to_recognized_objects_are_recognized(
    memory: KernelMemory, btf: Btf, names: AddressNames
) -> None:
    """struct pipe_inode_info, whose array of buffers has the operations of pipes."""
    with untyped_objects.pipes(_PLANTED):
        texts = [clue.text for one in _read(memory, btf, names) for clue in one.clues]
    assert any("which point at" in text and "anon_pipe_buf_release" in text for text in texts)


def test_the_name_of_a_function_is_found_at_its_first_byte_only(names: AddressNames, memory: KernelMemory) -> None:
    """/proc/kallsyms, which this process may read, has the address."""
    lines = [line.split() for line in Path("/proc/kallsyms").read_text().splitlines()]
    address = next(int(line[0], 16) for line in lines if line[2] == "timerfd_tmrproc")
    found = names.names([address, address + 8])
    assert (found[address].text, found[address].meaning) == ("timerfd_tmrproc", Meaning.NAMED)
    assert (found[address + 8].text, found[address + 8].meaning) == ("timerfd_tmrproc+0x8", Meaning.DATA)


def test_frames_of_pipes_are_charged_to_their_container(memory: KernelMemory, btf: Btf, names: AddressNames) -> None:
    """Frames of a load that the kernel itself says are charged to its cgroup (/proc/kpagecgroup)."""
    with container_cgroup() as container, PlantedMemory("pipes", 16 * MIB) as load, ExitStack() as files:
        container.add(load.pid)
        load.plant()
        flag_table = files.enter_context(FrameTable(Path("/proc/kpageflags")))
        charge_table = files.enter_context(FrameTable(Path("/proc/kpagecgroup")))
        ranges = read_memory_map(Path("/proc"), Path("/sys"), page_bytes=mmap.PAGESIZE)
        end = max(one.end for one in ranges)
        inode = container.path.stat().st_ino
        flags, charges = flag_table.read(0, end), charge_table.read(0, end)
        frames = np.flatnonzero(is_direct(flags) & ~is_head(flags) & ~is_tail(flags) & (charges == inode)).astype("<u8")
        found = frame_clues.frame_clues(
            take_slab_census(memory, btf),
            frame_clues.fields(btf),
            names,
            heads=np.empty(0, "<u8"),
            singles=frames,
            containers={inode: ContainerIdentity(container.container_id, container.pod_uid)},
        )
    (one,) = found.orders
    assert (one.subject, one.blocks, one.sampled) == ("frames of order 0", len(frames), 1024)
    assert len(frames) * mmap.PAGESIZE >= 16 * MIB
    assert dict(one.charged)[inode] == pytest.approx(one.sampled, rel=0.01)  # few are freed meanwhile
    uses = frame_clues.frame_use_records(found)
    assert f"charged to container {container.container_id[:12]}" in [use.property for use in uses]
