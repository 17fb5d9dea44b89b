"""What happened to each socket between two scans: what was read and sent, and what waited all the time (pure)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.sockets.scan import READABLE, UNSENT, SocketScan
from memdiag_node.sockets.source import COUNTS_READS, COUNTS_SENDS
from memdiag_node.sockets.stuck import is_tcp, matched, stuck_sockets, tcp_unread_bytes

NOT_KNOWN = -1
_MIN_CLOCK_SECONDS = 0.5
"""Over less time, the kernel's clock ticks too few times to tell their frequency."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What happened between two scans, in arrays with a value for each socket of the last one, by its number."""

    seconds: float
    """Minimum time between the two."""
    is_compared: bool
    """False if there was no first scan: then only what the last one shows by itself is known."""
    stuck: npt.NDArray[np.bool_]
    """Data was unread, and none of it was read."""
    unread_bytes: npt.NDArray[np.int64]
    """Now."""
    earlier_unread_bytes: npt.NDArray[np.int64]
    """In the first scan; 0 for a socket that is not in it."""
    read_bytes: npt.NDArray[np.int64]
    """What was read, if data was unread in both scans; NOT_KNOWN else, or if the protocol does not count it."""
    unread_age_seconds: npt.NDArray[np.float64]
    """Minimum age of the oldest unread data; NaN if not known."""
    unsent_bytes: npt.NDArray[np.int64]
    """Payload that the peer has not acknowledged, now."""
    earlier_unsent_bytes: npt.NDArray[np.int64]
    acked_bytes: npt.NDArray[np.int64]
    """What the peer acknowledged, if data waited for it in both scans; NOT_KNOWN else."""
    send_stalled_seconds: npt.NDArray[np.float64]
    """Minimum time in which data waited and the peer acknowledged nothing; NaN if it did, or nothing waited."""
    kept_throughout_bytes: npt.NDArray[np.int64]
    """The minimum of what the socket kept in the two scans; 0 for a socket that is not in the first."""

    @property
    def arrived_bytes(self) -> npt.NDArray[np.int64]:
        """What arrived, if it is known what was read; NOT_KNOWN else."""
        arrived = self.read_bytes + self.unread_bytes - self.earlier_unread_bytes
        return np.where(self.read_bytes == NOT_KNOWN, NOT_KNOWN, np.maximum(0, arrived))

    def per_second(self, moved_bytes: int) -> float | None:
        """A rate over the time between the scans; None for NOT_KNOWN, or if there was no time."""
        return moved_bytes / self.seconds if moved_bytes != NOT_KNOWN and self.seconds else None

    def slow_reads(self, drain_seconds: float) -> npt.NDArray[np.bool_]:
        """Which sockets are read, but so slowly that their backlog would take `drain_seconds` or more."""
        return _is_slow(self.unread_bytes, self.read_bytes, self.seconds, drain_seconds)

    def slow_sends(self, drain_seconds: float) -> npt.NDArray[np.bool_]:
        """Which sockets send, but so slowly that their backlog would take `drain_seconds` or more."""
        return _is_slow(self.unsent_bytes, self.acked_bytes, self.seconds, drain_seconds)


def progress_of(first: SocketScan | None, last: SocketScan) -> Progress:
    """Compare two scans of the same node. TCP counts what is read and acknowledged, in 64 bits since it was connected.

    Of other sockets it is known what was read if they were watched (SocketScanner.watch).
    """
    count = len(last.sockets)
    unread, unsent = unread_by_socket(last), last.sum_of("payload_bytes", UNSENT)
    none, unknown = np.zeros(count, "<i8"), np.full(count, NOT_KNOWN, "<i8")
    if first is None or not len(first.sockets):
        ages = np.full(count, np.nan)
        stuck = np.zeros(count, bool)
        seconds = _seconds(first, last) if first is not None else 0.0
        return Progress(
            seconds, first is not None, stuck, unread, none, unknown, ages, unsent, none, unknown, ages.copy(), none
        )
    place, same = matched(first, last)
    earlier_unread, earlier_unsent = (
        np.where(same, column[place], 0) for column in (unread_by_socket(first), first.sum_of("payload_bytes", UNSENT))
    )
    seconds = _seconds(first, last)
    is_counted = _have(COUNTS_READS, first, last, place)
    read = np.where(
        (earlier_unread > 0) & (unread > 0),
        np.where(
            is_counted,
            _grown(first.sockets["bytes_received"][place], last.sockets["bytes_received"]) + earlier_unread - unread,
            _watched_bytes(last),
        ),
        NOT_KNOWN,
    )
    # Sequence numbers have 32 bits: 4 GiB later they are the same, but not the counters.
    stuck = stuck_sockets(first, last) & ~(is_counted & (read > 0))
    read[stuck] = 0
    acked = np.where(
        (earlier_unsent > 0) & (unsent > 0) & _have(COUNTS_SENDS, first, last, place),
        _grown(first.sockets["bytes_acked"][place], last.sockets["bytes_acked"]),
        NOT_KNOWN,
    )
    return Progress(
        seconds=seconds,
        is_compared=True,
        stuck=stuck,
        unread_bytes=unread,
        earlier_unread_bytes=earlier_unread,
        read_bytes=np.maximum(read, NOT_KNOWN),
        unread_age_seconds=_unread_ages(first, last, (read >= 0) & (read < earlier_unread), unread > 0),
        unsent_bytes=unsent,
        earlier_unsent_bytes=earlier_unsent,
        acked_bytes=acked,
        send_stalled_seconds=np.where(acked == 0, np.maximum(seconds, last.sockets["delivered_age_ms"] / 1000), np.nan),
        kept_throughout_bytes=np.where(same, np.minimum(first.kept_bytes()[place], last.kept_bytes()), 0),
    )


def unread_by_socket(scan: SocketScan) -> npt.NDArray[np.int64]:
    """What each socket has received and its process has not read, in bytes of payload."""
    unread: npt.NDArray[np.int64] = np.where(
        is_tcp(scan.sockets), tcp_unread_bytes(scan.sockets), scan.sum_of("payload_bytes", READABLE)
    )
    return unread


def ticks_per_second(first: SocketScan, last: SocketScan) -> float:
    """The frequency of the kernel's jiffies (CONFIG_HZ), as both scans saw it; 0 if it is not known."""
    seconds = last.start_seconds - first.start_seconds
    if not first.start_jiffies or seconds < _MIN_CLOCK_SECONDS:
        return 0
    return max(0.0, (last.start_jiffies - first.start_jiffies) / seconds)


def _unread_ages(
    first: SocketScan, last: SocketScan, is_older: npt.NDArray[np.bool_], is_unread: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The minimum age of the oldest unread data. `is_older`: some of it was unread in the first scan."""
    ages = np.where(is_older, _seconds(first, last), np.nan)
    ticks = ticks_per_second(first, last)
    if ticks:
        # All of it is at least as old as what was received last.
        age = last.sockets["data_age_jiffies"] / ticks
        ages = np.where((last.sockets["flags"] & COUNTS_READS != 0) & (age > 0), np.fmax(ages, age), ages)
    ages[~is_unread] = np.nan
    return ages


def _seconds(first: SocketScan, last: SocketScan) -> float:
    return max(0.0, last.start_seconds - first.end_seconds)


def _have(flag: int, first: SocketScan, last: SocketScan, place: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    have: npt.NDArray[np.bool_] = (first.sockets["flags"][place] & last.sockets["flags"] & flag) != 0
    return have


def _grown(earlier: npt.NDArray[np.uint64], later: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return (later - earlier).astype("<i8")


def _watched_bytes(last: SocketScan) -> npt.NDArray[np.int64]:
    if not len(last.watched):
        return np.full(len(last.sockets), NOT_KNOWN, "<i8")
    place = np.minimum(np.searchsorted(last.watched["socket"], last.sockets["socket"]), len(last.watched) - 1)
    is_watched = last.watched["socket"][place] == last.sockets["socket"]
    return np.where(is_watched, last.watched["bytes"][place].astype("<i8"), NOT_KNOWN)


def _is_slow(
    waiting_bytes: npt.NDArray[np.int64], moved_bytes: npt.NDArray[np.int64], seconds: float, drain_seconds: float
) -> npt.NDArray[np.bool_]:
    slow: npt.NDArray[np.bool_] = (moved_bytes > 0) & (waiting_bytes * seconds >= moved_bytes * drain_seconds)
    return slow
