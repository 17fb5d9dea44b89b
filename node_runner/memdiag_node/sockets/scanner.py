"""Scan every socket of the node: its holders, its queues, and the blocks that they pin.

A scan does not enter namespaces, so it works in a pod without CAP_SYS_ADMIN: the sockets of every process are found
through its fds, connections not accepted yet through their listeners, sockets in flight through the queue they are in.
"""

import ctypes
import mmap
import os
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from memdiag_node.holding import sizes_bytes
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.memory import Fact
from memdiag_node.resource import Resource
from memdiag_node.sockets import source
from memdiag_node.sockets.scan import NAMELESS_DTYPE, QUEUE_DTYPE, READABLE, READER, SOCKET_DTYPE, SocketScan
from memdiag_node.sockets.sightings import MAX_SIGHTINGS, Sightings, addresses_of, merged, not_in
from memdiag_node.sockets.source import SocketSource
from memdiag_node.sockets.stuck import large_backlogs, lone_packets
from memdiag_node.sockets.worklist import is_busy, likely_bytes, worklist
from memdiag_node.time_budget import Stop
from memdiag_node.walker.tally import BLOCK_DTYPE, TALLY_DTYPE, bytes_by_owner, unfinished, unique_blocks
from memdiag_node.walker.walker import Found, QueueWalker, Status
from memdiag_node.walker.walks import ATTEMPTS, Walked, Walks, is_better

_MAX_ROUNDS = 16
_DEFAULT_BUDGET_SECONDS = 20.0
_LISTING_SECONDS, _CONFIRMING_SECONDS = 20.0, 20.0
# Of what is left of the grace period, if the run was asked to stop.
_LISTING_SHARE, _WALKING_SHARE, _CONFIRMING_SHARE, _OTHERS_SHARE = 0.15, 0.4, 0.2, 0.2
_MIN_BLOCKS = 1 << 20
_M_MMAP_THRESHOLD, _LARGE_BYTES = -3, 1 << 18
_BLOCKS_PER_RAM_BYTE = 0.0004 / 12  # 0.04 % of RAM, at 12 bytes per block, plus half of that while sorting


class SocketScanner(Resource):
    """Loads the eBPF programs once and scans on each call; use as a context manager or call `close`.

    A scan walks for `budget_seconds`, and the other holders after it for the same time; listing the sockets before and
    describing them again after, have separate budgets. After a request to `stop` all budgets are shortened. A scan
    keeps up to `max_blocks` blocks, 0 for a share of the RAM, and up to `max_sightings` fds. What was not reached
    or not kept is reported.

    Raises BtfError or BpfError if this kernel or this process's privileges do not allow it.
    """

    def __init__(
        self,
        *,
        btf: Btf,
        budget_seconds: float = _DEFAULT_BUDGET_SECONDS,
        max_blocks: int = 0,
        max_sightings: int = MAX_SIGHTINGS,
        stop: Stop | None = None,
    ) -> None:
        _give_back_what_is_freed()
        self._budget_seconds = budget_seconds
        self._max_blocks = max_blocks or _default_max_blocks()
        self._max_sightings = max_sightings
        self._stop = stop or Stop()
        self._read_early: npt.NDArray[np.uint64] | None = None
        with self._opening() as parts:
            self._source = parts.enter_context(SocketSource(btf))
            self._walker = parts.enter_context(QueueWalker(btf))

    @property
    def source(self) -> SocketSource:
        """The source, which reads kernel memory, for the other kinds of holders."""
        return self._source

    def walks(self) -> Walks:
        """A walk of other objects than queues (holders.registry), with a budget that starts now."""
        return Walks(self._source.memory, self._walker, self._stop.budget(self._budget_seconds, share=_OTHERS_SHARE))

    @property
    def max_blocks(self) -> int:
        """The number of blocks that may be kept."""
        return self._max_blocks

    def scan(self, extra: npt.NDArray[np.uint64] | None = None, *, extra_is_whole: bool = False) -> SocketScan:
        """Scan every socket once. Raises BpfError if reading from the kernel fails.

        `extra`: addresses of sockets to scan as well, as the census of slabs finds them; what is no longer a socket is
        skipped. `extra_is_whole`: they are all sockets of the node, so that none is reported as not seen.
        """
        sightings = Sightings(self._max_sightings)
        scan = _Scan(
            self._source,
            self._walker,
            self._stop,
            self._budget_seconds,
            sightings,
            self._max_blocks,
            extra=np.empty(0, "<u8") if extra is None else extra,
            extra_is_whole=extra is not None and extra_is_whole,
        ).run()
        if self._read_early is None:
            return scan
        watched = self._source.unwatch()
        read = np.union1d(watched["socket"][watched["calls"] > 0], self._read_early)
        self._read_early = None
        return replace(scan, read=read, watched=watched)

    def watch(self, scan: SocketScan) -> SocketScan:
        """Until the next scan, watch for reads from the sockets with a single packet unread, and with a large backlog.

        A single packet's memory is soon reused: a packet of the same length at that address at the end may be another
        one. Of a large backlog it is counted how much is read. TCP has counters and is not watched.
        Returns `scan` with the time from which on no read is missed.
        """
        backlogs = scan.sockets["socket"][large_backlogs(scan)[: source.WATCHED // 2]]
        chosen = lone_packets(scan)[: source.WATCHED - len(backlogs)]
        sockets = scan.sockets["socket"][scan.queues["socket"][chosen]]
        if not len(chosen) + len(backlogs) or not self._source.watch(np.union1d(sockets, backlogs)):
            return scan
        watched_seconds = time.monotonic()
        # Packets that were read before the watch started are gone.
        queues = scan.queues[chosen]
        packets = queues["identity"][:, 0] ^ (queues["payload_bytes"] << np.uint64(32))
        at = {name: np.uint64(self._source.offset[name]) for name in ("SOCK_RECEIVE_QUEUE", "UDP_READER_QUEUE")}
        heads = sockets + np.where(queues["name"] == READER, at["UDP_READER_QUEUE"], at["SOCK_RECEIVE_QUEUE"])
        self._read_early = sockets[self._source.memory.peek(heads) != packets]
        return replace(scan, end_seconds=watched_seconds)


class _Scan:
    """The state of a single scan."""

    def __init__(  # noqa: PLR0917 - parts of the scanner that creates it
        self,
        sockets: SocketSource,
        walker: QueueWalker,
        stop: Stop,
        budget_seconds: float,
        sightings: Sightings,
        max_blocks: int,
        *,
        extra: npt.NDArray[np.uint64],
        extra_is_whole: bool,
    ) -> None:
        self._extra = extra
        self._extra_is_whole = extra_is_whole
        self._source = sockets
        self._walker = walker
        self._stop = stop
        self._budget_seconds = budget_seconds
        self._sightings = sightings
        self._max_blocks = max_blocks
        self._start_seconds = time.monotonic()
        self._start_jiffies = sockets.jiffies()
        self._known = np.empty(0, "<u8")
        self._seen = 0
        self._not_reached = 0
        self._not_listed_after_pid: int | None = None
        self._is_listed_whole = True
        self._not_confirmed = 0
        self._tables_read = False
        self._namespaces_walked = False
        self._namespaces_whole = True
        self._kept: list[npt.NDArray[np.void]] = []
        self._names: dict[int, tuple[bytes, bytes]] = {}
        self._holding: dict[int, tuple[int, int]] = {}
        self._queues: list[npt.NDArray[np.void]] = []
        self._blocks: list[npt.NDArray[np.void]] = []
        self._blocks_left_out = 0

    def run(self) -> SocketScan:
        listed = self._list()
        owners, self._files = self._sightings.owners(), self._sightings.files()
        candidates = merged(merged(addresses_of(owners), listed), self._extra)
        # The time to walk starts here: listing the fds of a node may take long if there are millions.
        budget = self._stop.budget(self._budget_seconds, share=_WALKING_SHARE)
        self._walks = Walks(self._source.memory, self._walker, budget)
        for _ in range(_MAX_ROUNDS):
            if not len(candidates):
                break
            candidates = self._look_at(candidates)
            if self._walks.late():
                self._not_reached += len(candidates)
                break
            if not self._tables_read:
                candidates = merged(candidates, not_in(self._in_tables(), self._known))
        return self._result(owners)

    def _list(self) -> npt.NDArray[np.uint64]:
        """List every fd of a holder; returns the sockets of the own network namespace, held or not."""
        budget = self._stop.budget(_LISTING_SECONDS, share=_LISTING_SHARE)
        for records in self._source.held():
            self._sightings.add(records)
            if budget.late():
                self._not_listed_after_pid = int(records["pid"][-1])
                break
        pieces = [np.empty(0, "<u8")]
        if not budget.ran_out:
            for piece in self._source.listed():
                pieces.append(piece)
                if budget.late():
                    break
        self._is_listed_whole = not budget.ran_out
        return np.concatenate(pieces)

    def _look_at(self, candidates: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Describe these sockets, walk their queues, and return the sockets found in them."""
        self._known = merged(self._known, candidates)
        rows = self._describe(candidates)
        rows = rows[np.argsort(-likely_bytes(rows), kind="stable")]  # if the time runs out, the largest were reached
        base = sum(map(len, self._kept))
        self._kept.append(_narrowed(rows, SOCKET_DTYPE))
        socket, name, items = worklist(rows, self._source.offset)
        addresses = rows["socket"].copy()
        del rows
        walked = self._walk_queues(socket, name, items)
        table, blocks, findings = walked.table, walked.blocks, walked.findings
        queues = np.zeros(len(items), QUEUE_DTYPE)
        for column in TALLY_DTYPE.names or ():
            queues[column] = table[column]
        queues["socket"], queues["name"] = base + socket, name
        user = blocks["user"]
        queues["pinned_bytes"] = bytes_by_owner(blocks[~user], len(items), page_size_bytes=mmap.PAGESIZE)
        queues["user_bytes"] = bytes_by_owner(blocks[user], len(items), page_size_bytes=mmap.PAGESIZE)
        blocks = blocks[~user]
        blocks["owner"] = base + socket[blocks["owner"]]
        self._queues.append(queues[(queues["packets"] > 0) | (queues["status"] != Status.WHOLE)])
        self._blocks.append(unique_blocks(blocks))
        for finding in findings[findings["how"] != Found.LISTED]:
            address = int(finding["socket"])
            self._holding.setdefault(address, (int(addresses[socket[finding["item"]]]), int(finding["how"])))
        return not_in(findings["socket"], self._known)

    def _in_tables(self) -> npt.NDArray[np.uint64]:
        """Sockets in the hash tables of all network namespaces, even if no fd and no listener leads to them."""
        self._tables_read = True
        nets = self._walker.net_items(self._source.memory.own_net)
        if not len(nets):
            return np.empty(0, "<u8")
        found = self._walk(nets)
        self._namespaces_walked = bool(found.tables)
        listed = self._walk(self._walker.table_items(found.tables))
        self._namespaces_whole = all(walked.count(Status.WHOLE) == len(walked.table) for walked in (found, listed))
        addresses: npt.NDArray[np.uint64] = np.unique(listed.findings["socket"])
        return addresses

    def _describe(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.void]:
        kept = []
        for number, rows in enumerate(self._source.describe(addresses), start=1):
            self._seen += len(rows)
            rows = rows[is_busy(rows)]  # noqa: PLW2901 - the idle ones are only counted
            for row in rows[(rows["local_name_bytes"] > 0) | (rows["remote_name_bytes"] > 0)]:
                self._names[int(row["socket"])] = (
                    row["local_name"][: row["local_name_bytes"]].tobytes(),
                    row["remote_name"][: row["remote_name_bytes"]].tobytes(),
                )
            kept.append(_narrowed(rows, NAMELESS_DTYPE))
            if self._walks.late():
                self._not_reached += max(0, len(addresses) - number * source.DESCRIBED_AT_ONCE)
                break
        return _joined(kept, NAMELESS_DTYPE)

    def _walk_queues(
        self, socket: npt.NDArray[np.intp], name: npt.NDArray[np.uint8], items: npt.NDArray[np.void]
    ) -> Walked:
        """Walk the worklist, and again the two queues of a UDP socket whose reader moved packets between the walks.

        The reader moves packets from the receive queue into its own queue, from which only it removes them
        (net/ipv4/udp.c, __skb_recv_udp). So packets seen in its own queue, walked first, must be there after both.
        """
        walked = self._walk(items, attempts=1)
        for _ in range(ATTEMPTS - 1):
            apart = self._walked_apart(socket, name, items, walked)
            again = np.union1d(apart, unfinished(walked.table))
            if not len(again) or self._walks.late():
                break
            newer = self._walk(items[again], attempts=1)
            better = np.isin(again, apart) | is_better(walked.table[again], newer.table)
            walked.replace(again, newer, better=better)
        apart = self._walked_apart(socket, name, items, walked)
        walked.table["status"][apart[walked.table["status"][apart] == Status.WHOLE]] = Status.RACE
        return walked

    def _walked_apart(
        self,
        socket: npt.NDArray[np.intp],
        name: npt.NDArray[np.uint8],
        items: npt.NDArray[np.void],
        walked: Walked,
    ) -> npt.NDArray[np.intp]:
        """The items of UDP sockets whose two queues were not seen at the same moment."""
        reader = np.flatnonzero(name == READER)
        waiting = self._source.memory.peek(items["head"][reader] + np.uint64(self._source.offset["QUEUE_LENGTH"]))
        differs = waiting.astype("<u4") != walked.table["packets"][reader]
        changed = np.union1d(socket[reader[differs]], socket[unfinished(walked.table)])
        return np.flatnonzero(np.isin(socket, np.intersect1d(changed, socket[reader])) & np.isin(name, READABLE))

    def _walk(self, items: npt.NDArray[np.void], *, attempts: int = ATTEMPTS) -> Walked:
        room = max(0, self._max_blocks - sum(map(len, self._blocks)))
        walked = self._walks.walk(items, max_blocks=room, attempts=attempts)
        self._blocks_left_out += walked.blocks_left_out
        return walked

    def _result(self, owners: npt.NDArray[np.void]) -> SocketScan:
        rows = _joined(self._kept, SOCKET_DTYPE)
        queues = _joined(self._queues, QUEUE_DTYPE)
        blocks = _joined(self._blocks, BLOCK_DTYPE)
        alive = self._still_the_same(rows)
        order = np.flatnonzero(alive)[np.argsort(rows["socket"][alive])]
        number = np.full(len(rows), -1, np.int64)
        number[order] = np.arange(len(order))
        rows = rows[order]
        queues = queues[number[queues["socket"]] >= 0]
        queues["socket"] = number[queues["socket"]]
        blocks = blocks[number[blocks["owner"]] >= 0]
        blocks["owner"] = number[blocks["owner"]]
        _, first = np.unique(blocks["page"], return_index=True)
        pinned = sizes_bytes(blocks[first]).sum()
        return SocketScan(
            sockets=rows,
            names=self._names,
            owners=owners,
            holding=self._holding,
            queues=queues[np.lexsort((queues["name"], queues["socket"]))],
            blocks=unique_blocks(blocks),
            sockets_seen=self._seen,
            pinned_bytes=int(pinned),
            files=self._files,
            not_seen=self._not_seen(queues),
            lists_every_fd=self._is_listed_whole and not self._sightings.left_out,
            sockets_not_reached=self._not_reached,
            blocks_not_kept=self._blocks_left_out,
            sees_linear_heads=bool(self._source.memory.fact(Fact.LINEAR_TO_PAGE)),
            tables_complete=self._tables_complete(),
            start_seconds=self._start_seconds,
            end_seconds=time.monotonic(),
            start_jiffies=self._start_jiffies,
        )

    def _still_the_same(self, rows: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
        """Describe the sockets again and use the newer counters; False for one that was closed or replaced meanwhile.

        Sockets not reached in time keep their first description.
        """
        alive = np.zeros(len(rows), bool)
        position = np.argsort(rows["socket"])
        ordered = rows["socket"][position]
        budget = self._stop.budget(_CONFIRMING_SECONDS, share=_CONFIRMING_SHARE)
        for number, pieces in enumerate(self._source.describe(ordered), start=1):
            newer = _narrowed(pieces, SOCKET_DTYPE)
            index = position[np.searchsorted(ordered, newer["socket"])]
            same = np.ones(len(newer), bool)
            for column in ("family", "protocol", "netns"):
                same &= rows[column][index] == newer[column]
            # A connection gets its inode when accepted and loses it when closed; another inode means another socket.
            older_inode = rows["inode"][index]
            same &= (older_inode == newer["inode"]) | (older_inode == 0) | (newer["inode"] == 0)
            alive[index] = same
            rows[index[same]] = newer[same]
            if budget.late():
                rest = position[number * source.DESCRIBED_AT_ONCE :]
                alive[rest] = True
                self._not_confirmed = len(rest)
                break
        return alive

    def _tables_complete(self) -> bool:
        return self._namespaces_whole or self._extra_is_whole

    def _without_fd_not_seen(self) -> list[str]:
        """What a scan that does not know all sockets beforehand cannot find."""
        notes = [f"this kernel does not list {kind} sockets that no fd holds" for kind in self._source.missing_finders]
        notes.append("raw, vsock and UDP-Lite sockets that no fd and no listener leads to")
        others = "netlink" if self._namespaces_walked else "any"
        notes.append(f"{others} sockets of other network namespaces that no fd and no listener leads to")
        return notes

    def _not_seen(self, queues: npt.NDArray[np.void]) -> list[str]:
        notes = [] if self._extra_is_whole else self._without_fd_not_seen()
        if not self._tables_complete():
            notes.append("some of these sockets, of any kind: their tables changed during the scan or were not reached")
        if not self._source.memory.fact(Fact.LINEAR_TO_PAGE):
            notes.append(
                "pages that are a packet's linear head (counted as slab heads: this kernel's slab layout is unknown)"
            )
        device = int(queues["device"].sum())
        if device:
            notes.append(f"{device} fragments in device memory, which is not RAM of this node")
        if self._sightings.left_out:
            notes.append(f"what only {self._sightings.left_out} fds lead to, beyond the number that this scan may keep")
        if self._not_listed_after_pid is not None:
            after = f"processes after pid {self._not_listed_after_pid}"
            notes.append(f"files of {after}, and sockets without an fd: the scan's time did not reach them")
        if self._not_confirmed:
            notes.append(f"whether {self._not_confirmed} sockets were still there at the end of the scan")
        if self._blocks_left_out:
            notes.append(f"{self._blocks_left_out} blocks beyond the {self._max_blocks} that this scan may keep")
        not_reached = int(np.count_nonzero(queues["status"] == Status.NOT_REACHED))
        if not_reached or self._not_reached:
            notes.append(f"{self._not_reached} sockets and {not_reached} queues that the scan's time did not reach")
        return notes


def _default_max_blocks() -> int:
    return max(_MIN_BLOCKS, int(os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE * _BLOCKS_PER_RAM_BYTE))


def _give_back_what_is_freed() -> None:
    """Make the C library map each large array separately, so that freeing it returns its memory.

    By default it raises that threshold with each array that it frees, and keeps tens of MiB (man 3 mallopt).
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _joined(parts: list[npt.NDArray[np.void]], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """All parts in one array; empties the list, as both together could take too much memory."""
    whole = np.concatenate(parts) if parts else np.empty(0, dtype)
    parts.clear()
    return whole


def _narrowed(rows: npt.NDArray[np.void], dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The rows with only the fields of `dtype`."""
    kept = np.empty(len(rows), dtype)
    for column in dtype.names or ():
        kept[column] = rows[column]
    return kept
