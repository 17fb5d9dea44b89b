"""Loaded BPF programs: their instructions and their machine code, in vmalloc (kernel/bpf/core.c).

Each is small, but a node may have thousands. They are summed up by process: that with an fd of the program, or with an
fd of a link that attaches it.
"""

import mmap
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.memory_classes import ClassName
from memdiag_node.holders.context import HolderContext
from memdiag_node.holders.fields import WORD_BYTES, numbers, text, words
from memdiag_node.holding import PINNED_DTYPE, Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.sockets.file_kinds import FileKind
from memdiag_node.sockets.source import SocketSource

_MAX_PROGRAMS = 1 << 16
_MAX_USED_MAPS = 64  # include/linux/bpf_verifier.h, MAX_USED_MAPS
_MAX_CODE_BYTES = 1 << 25
_NAME_BYTES = 16  # include/uapi/linux/bpf.h, BPF_OBJ_NAME_LEN

_PROGRAM: tuple[Field, ...] = (
    ("PROGRAM_PAGES", "bpf_prog", "pages"),
    ("PROGRAM_CODE_BYTES", "bpf_prog", "jited_len"),
    ("PROGRAM_AUX", "bpf_prog", "aux"),
    ("PROGRAM_ID", "bpf_prog_aux", "id"),
    ("PROGRAM_NAME", "bpf_prog_aux", "name"),
    ("PROGRAM_MAP_COUNT", "bpf_prog_aux", "used_map_cnt"),
    ("PROGRAM_MAPS", "bpf_prog_aux", "used_maps"),
)
_LINK: tuple[Field, ...] = (("LINK_PROGRAM", "bpf_link", "prog"),)  # 5.7


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of a program's size and maps."""
    return optional_offsets(btf, "HAS_PROGRAM", _PROGRAM) | optional_offsets(btf, "HAS_LINK", _LINK)


@dataclass(frozen=True, slots=True)
class MapUser:
    """A loaded program that uses a map."""

    program_id: int
    name: str


def users_of_maps(source: SocketSource, at: Mapping[str, int]) -> dict[int, MapUser]:
    """One loaded program for each map that any uses, by the map's address."""
    if "HAS_PROGRAM" not in at:
        return {}
    memory = source.memory
    programs = source.bpf_programs()[:_MAX_PROGRAMS]
    aux = words(memory, programs, at["PROGRAM_AUX"])
    counts = np.minimum(numbers(memory, aux, at["PROGRAM_MAP_COUNT"]), _MAX_USED_MAPS)
    tables = words(memory, aux, at["PROGRAM_MAPS"])
    counts[tables == 0] = 0
    slots = np.arange(int(counts.sum()), dtype="<u8")
    first = np.repeat(np.cumsum(counts) - counts, counts).astype("<u8")
    maps = memory.peek(np.repeat(tables, counts) + (slots - first) * np.uint64(WORD_BYTES))
    user_of = dict(zip(maps.tolist(), np.repeat(np.arange(len(programs)), counts).tolist(), strict=True))
    ids = numbers(memory, aux, at["PROGRAM_ID"])
    names: dict[int, str] = {}
    found = {}
    for address, number in user_of.items():
        if number not in names:
            names[number] = text(memory, int(aux[number]) + at["PROGRAM_NAME"], _NAME_BYTES)
        found[address] = MapUser(int(ids[number]), names[number])
    return found


def find(context: HolderContext) -> list[Holding]:
    """The programs of each process together, and those that no fd leads to."""
    source, at = context.scanner.source, context.at
    if "HAS_PROGRAM" not in at:
        return []
    memory = source.memory
    programs = source.bpf_programs()
    if len(programs) > _MAX_PROGRAMS:
        context.not_seen.append(f"{len(programs) - _MAX_PROGRAMS} BPF programs beyond {_MAX_PROGRAMS}")
        programs = programs[:_MAX_PROGRAMS]
    pages = numbers(memory, programs, at["PROGRAM_PAGES"], bits=16)
    code_bytes = numbers(memory, programs, at["PROGRAM_CODE_BYTES"])
    code_bytes[code_bytes > _MAX_CODE_BYTES] = 0
    pairs = _owners(context)
    by_pid: dict[int, list[int]] = defaultdict(list)
    for number, address in enumerate(programs.tolist()):
        by_pid[min((pid for pid, _ in pairs.get(address, ())), default=0)].append(number)
    held = []
    for pid, members in by_pid.items():
        mine = [pair for number in members for pair in pairs.get(int(programs[number]), ())]
        owners, total = context.owners(mine)
        size_bytes = int(pages[members].sum()) * mmap.PAGESIZE + int(code_bytes[members].sum())
        holder = Holder(
            kind=HolderKind.BPF_PROGRAM,
            memory_class=ClassName.VMALLOC,
            description=f"{len(members)} BPF programs" if len(members) > 1 else "a BPF program",
            owners=owners,
            owners_total=total,
            unowned_reason="" if pid else "no fd: attached, or pinned in a BPF file system",
            summed=len(members),
            pinned_bytes=size_bytes,
        )
        held.append(Holding(holder, np.empty(0, PINNED_DTYPE)))
    return held


def _owners(context: HolderContext) -> dict[int, list[tuple[int, int]]]:
    """(pid, fd) of each program's own fds and of those of its links, by the program's address."""
    files, at = context.scan.files, context.at
    pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    own = files[files["kind"] == FileKind.BPF_PROGRAM]
    for file in own:
        pairs[int(file["socket"])].append((int(file["pid"]), int(file["fd"])))
    if "HAS_LINK" in at:
        links = files[files["kind"] == FileKind.BPF_LINK]
        programs = words(context.scanner.source.memory, links["socket"].astype("<u8"), at["LINK_PROGRAM"])
        for file, program in zip(links, programs.tolist(), strict=True):
            pairs[program].append((int(file["pid"]), int(file["fd"])))
    return pairs
