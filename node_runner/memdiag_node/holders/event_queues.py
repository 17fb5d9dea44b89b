"""Events of inotify and fanotify that no process has read (fs/notify/): slab.

Of the files like eventfd, these can hold much: inotify up to fs.inotify.max_queued_events for each fd, and fanotify
without a limit if the process asked for that. eventfd, timerfd, signalfd and epoll have no queue of data.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_api.evidence import Holder, HolderKind
from memdiag_api.memory_classes import ClassName
from memdiag_node.holders.context import HolderContext
from memdiag_node.holders.fields import numbers
from memdiag_node.holding import PINNED_DTYPE, Holding
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader
from memdiag_node.sockets.file_kinds import FileKind

_MIN_BYTES = 64 << 10
_MAX_EVENTS = 1 << 28
_SAMPLE = 256
"""Events of each queue whose names are looked at; their mean stands for the rest."""
_MAX_NAME_BYTES = 4096
_SLAB_BYTES = np.array([8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192])
"""Sizes of kmalloc's caches."""

_QUEUE: tuple[Field, ...] = (
    ("EVENT_COUNT", "fsnotify_group", "q_len"),
    ("EVENT_LIST", "fsnotify_group", "notification_list"),
    ("EVENT_LINK", "fsnotify_event", "list"),
)
_INOTIFY: tuple[Field, ...] = (
    ("INOTIFY_EVENT", "inotify_event_info", "fse"),
    ("INOTIFY_NAME_BYTES", "inotify_event_info", "name_len"),
    ("INOTIFY_NAME", "inotify_event_info", "name"),
)


def fields(btf: Btf) -> dict[str, int]:
    """The offsets of a group's queue, and the size of an event of fanotify."""
    found = optional_offsets(btf, "HAS_EVENTS", _QUEUE) | optional_offsets(btf, "HAS_INOTIFY", _INOTIFY)
    if btf.has_struct("fanotify_fid_event"):
        found["FANOTIFY_EVENT_BYTES"] = btf.size_bytes("fanotify_fid_event")
    return found


def find(context: HolderContext) -> list[Holding]:
    """The unread events of each process together, if they are many."""
    memory, at, files = context.scanner.source.memory, context.at, context.scan.files
    if "HAS_EVENTS" not in at:
        return []
    held = []
    for kind, name in ((FileKind.INOTIFY, "inotify"), (FileKind.FANOTIFY, "fanotify")):
        mine = files[files["kind"] == kind]
        groups = np.unique(mine["socket"])
        counts = numbers(memory, groups, at["EVENT_COUNT"])
        counts[counts > _MAX_EVENTS] = 0
        groups, counts = groups[counts > 0], counts[counts > 0]
        each = _event_bytes(memory, at, groups, kind)
        of_group = dict(zip(groups.tolist(), zip(counts.tolist(), (counts * each).tolist(), strict=True), strict=True))
        held += _by_process(context, mine, of_group, name)
    return held


def _by_process(
    context: HolderContext, files: npt.NDArray[np.void], of_group: Mapping[int, tuple[int, float]], name: str
) -> list[Holding]:
    """One holding for each set of processes. `of_group`: the number of events of a group, and their bytes."""
    pairs: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for file in files[np.isin(files["socket"], list(of_group))]:
        pairs[int(file["socket"])].append((int(file["pid"]), int(file["fd"])))
    members: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for group, fds in pairs.items():
        members[tuple(sorted({pid for pid, _ in fds}))].append(group)
    held = []
    for groups in members.values():
        events = sum(of_group[group][0] for group in groups)
        size_bytes = round(sum(of_group[group][1] for group in groups))
        if size_bytes < _MIN_BYTES:
            continue
        owners, total = context.owners(pair for group in groups for pair in pairs[group])
        holder = Holder(
            kind=HolderKind.EVENT_QUEUE,
            memory_class=ClassName.SUNRECLAIM,
            description=f"{events} events of {name} that were not read",
            owners=owners,
            owners_total=total,
            summed=len(groups),
            unread_packets=events,
            pinned_bytes=size_bytes,
        )
        held.append(Holding(holder, np.empty(0, PINNED_DTYPE)))
    return held


def _event_bytes(
    memory: WordReader, at: Mapping[str, int], groups: npt.NDArray[np.uint64], kind: FileKind
) -> npt.NDArray[np.float64]:
    """The mean size of each group's events in slab."""
    if kind is FileKind.FANOTIFY or "HAS_INOTIFY" not in at:
        return np.full(len(groups), float(at.get("FANOTIFY_EVENT_BYTES", 64)))
    heads = groups + np.uint64(at["EVENT_LIST"])
    entries = memory.peek(heads)
    bytes_, seen = np.zeros(len(groups)), np.zeros(len(groups), np.int64)
    for _ in range(_SAMPLE):
        more = np.flatnonzero((entries != heads) & (entries != 0))
        if not len(more):
            break
        events = entries[more] - np.uint64(at["EVENT_LINK"] + at["INOTIFY_EVENT"])
        names = numbers(memory, events, at["INOTIFY_NAME_BYTES"])
        sizes = at["INOTIFY_NAME"] + np.minimum(names, _MAX_NAME_BYTES) + 1
        bytes_[more] += _SLAB_BYTES[np.searchsorted(_SLAB_BYTES, sizes)]
        seen[more] += 1
        entries[more] = memory.peek(entries[more])
    return bytes_ / np.maximum(seen, 1)
