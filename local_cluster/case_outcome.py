"""The outcome of one run of the case: the figures that `make case` shows and that a test checks."""

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


class Cause(enum.StrEnum):
    """Why the worker stops reading."""

    STOPPED = "stopped"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Moment:
    """The node's own figures at one moment, in bytes."""

    free: int
    tcp: int
    """`mem` of TCP in /proc/net/sockstat: what the kernel charges to all TCP sockets."""
    unread: Mapping[str, int]
    """Unread bytes of each upload, by the worker's fd (in decimal), as shown by ss."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run of the case; all sizes in bytes."""

    ready_seconds: float
    sent_before: int
    """Bytes sent by the clients when the diagnosis was created."""
    sent: int
    """Bytes sent by the clients when it had ended."""
    worker_pid: int
    before: Moment
    planted: Moment
    tools: Mapping[str, str]
    """Output of the usual tools, by command line."""
    diagnosis: dict[str, Any]
    diagnosis_seconds: float
    evidence: dict[str, Any]
    """From the report of that diagnosis."""
    full: Moment
    """After the diagnosis had ended and the clients had stopped."""
    after: Moment
    """After the worker had been killed."""
    rerun: dict[str, Any]

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what `save` wrote."""
        fields = json.loads(file.read_text())
        moments = {name: Moment(**fields[name]) for name in ("before", "planted", "full", "after")}
        return cls(**(fields | moments))

    def save(self, file: Path) -> None:
        """Write it to `file`, as JSON."""
        file.write_text(json.dumps(asdict(self), indent=1))

    @property
    def unread(self) -> int:
        """Unread bytes in the worker's sockets, as the diagnosis found them."""
        return sum(one["unreadBytes"] for one in self.evidence["holders"] if self._is_workers(one))

    @property
    def pinned(self) -> int:
        """Bytes that sockets pin; a block that several sockets share is counted once."""
        pinned: int = self.evidence["coverage"]["pinnedBytes"]
        return pinned

    @property
    def driver_stack(self) -> dict[str, Any]:
        """The largest of the call stacks in the network driver."""
        stacks = [one for one in self.evidence["stacks"] if any("[virtio_net]" in frame for frame in one["frames"])]
        largest: dict[str, Any] = max(stacks, key=lambda one: one["outstandingBytes"])
        return largest

    @property
    def join_share(self) -> float:
        """The share of that stack's allocations that is in the sockets, of those in the window that were not freed."""
        share: float = self.driver_stack["explainedBytes"] / self.driver_stack["outstandingBytes"]
        return share

    def _is_workers(self, holder: dict[str, Any]) -> bool:
        return any(owner["pid"] == self.worker_pid for owner in holder["owners"])
