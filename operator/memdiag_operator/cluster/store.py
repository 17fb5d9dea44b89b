"""What the API server was last known to have: diagnoses, runner pods and the nodes that they are about.

The watches fill it, and so does every response to a write of our own; a sweep replaces it by whole lists now and then,
in case a watch has missed something. Reading it costs no request. It may be a moment behind, which is safe: a status is
written only over the version that was read, names of pods follow from the run, and before a decision concludes anything
from the absence of a pod, the API server is asked (`decide.decision`).
"""

import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from memdiag_api.diagnosis import MemoryDiagnosisStatus
from memdiag_operator.decide.claims import claim_of
from memdiag_operator.decide.fleet import Claim, Fleet
from memdiag_operator.decide.stored_reports import Run, StoredReport
from memdiag_operator.kube.objects import Diagnosis, Node, Pod

Item = TypeVar("Item", Diagnosis, Pod)

REMEMBERED_DELETIONS = 4096
FORGET_NODE_SECONDS = 300.0
TIDY_NODES_SECONDS = 30.0


class Store(Generic[Item]):
    """Objects of one kind by name, each in the latest version seen. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}
        # A late response must not bring back what a watch has reported as deleted: a UID is never used again.
        self._deleted_uids: OrderedDict[str, None] = OrderedDict()
        self.is_complete = False
        """Whether a whole list has been put into it since the start."""
        self.version = 0
        """Incremented by each change that matters to other objects than the changed one."""

    def get(self, name: str) -> Item | None:
        """The object `name`; None if there is none."""
        return self._items.get(name)

    def all(self) -> tuple[Item, ...]:
        """Every object."""
        with self._lock:
            return tuple(self._items.values())

    def put(self, item: Item) -> None:
        """Store `item`, unless a newer version of it is stored or it is known to be deleted."""
        with self._lock:
            self._put(item)

    def drop(self, name: str, uid: str) -> None:
        """Forget the object `name` with `uid`, which is deleted."""
        with self._lock:
            self._deleted_uids[uid] = None
            if len(self._deleted_uids) > REMEMBERED_DELETIONS:
                self._deleted_uids.popitem(last=False)
            known = self._items.get(name)
            if known and known.metadata.uid == uid:
                self._forget(name)

    def replace(self, pages: Iterable[tuple[Iterable[Item], str]]) -> None:
        """Store a whole list in pages, each with the list's resource version; what is newer than the list stays."""
        listed: set[str] = set()
        version = ""
        for items, version in pages:  # noqa: B007 - all pages have the same version
            with self._lock:
                for item in items:
                    listed.add(item.metadata.name)
                    self._put(item)
        with self._lock:
            for name, known in list(self._items.items()):
                if name not in listed and not _is_newer(known.metadata.resource_version, version):
                    self._forget(name)
            self.is_complete = True

    def _put(self, item: Item) -> None:
        meta = item.metadata
        known = self._items.get(meta.name)
        if known and _is_newer(known.metadata.resource_version, meta.resource_version):
            return
        # The response to a write is delivered once more by the watch.
        is_known = known and meta.resource_version and known.metadata.resource_version == meta.resource_version
        if meta.uid not in self._deleted_uids and not is_known:
            self._keep(item)

    def _keep(self, item: Item) -> None:
        self._items[item.metadata.name] = item
        self.version += 1

    def _forget(self, name: str) -> None:
        del self._items[name]
        self.version += 1


_NO_STATUS = MemoryDiagnosisStatus()


@dataclass(frozen=True, slots=True)
class _Draft:
    """A status that is decided and not written yet."""

    status: MemoryDiagnosisStatus
    base_version: str
    """Resource version of the stored diagnosis that it was made from."""


class DiagnosisStore(Store[Diagnosis]):
    """Diagnoses. Their status is compressed until it is read: a cluster may have thousands, of 200 KiB each.

    What matters to other diagnoses is also kept, as claims.
    """

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[str, bytes] = {}
        self._claims: dict[str, Claim] = {}
        self._drafts: dict[str, _Draft] = {}

    def get(self, name: str) -> Diagnosis | None:
        """The diagnosis `name` with its status; None if there is none."""
        with self._lock:
            light, packed = self._items.get(name), self._packed.get(name)
        if light is None or packed is None:
            return None
        status = MemoryDiagnosisStatus.model_validate_json(zlib.decompress(packed))
        return light.model_copy(update={"status": status})

    def all(self) -> tuple[Diagnosis, ...]:
        """Every diagnosis, with its status."""
        with self._lock:
            names = list(self._items)
        return tuple(found for name in names if (found := self.get(name)))

    def claim(self, name: str) -> Claim | None:
        """What the diagnosis `name` wants of the cluster; None if there is none."""
        return self._claims.get(name)

    def claims(self) -> tuple[Claim, ...]:
        """What every diagnosis wants of the cluster."""
        with self._lock:
            return tuple(self._claims.values())

    def keep_draft(self, decided: Diagnosis) -> None:
        """Keep the status of `decided` until it is written, or until the stored diagnosis changes."""
        meta = decided.metadata
        claim = claim_of(decided)
        with self._lock:
            known = self._items.get(meta.name)
            if known and (known.metadata.uid, known.metadata.resource_version) == (meta.uid, meta.resource_version):
                self._drafts[meta.name] = _Draft(decided.status, meta.resource_version)
                self._set_claim(claim)

    def draft(self, stored: Diagnosis) -> MemoryDiagnosisStatus | None:
        """The status that was decided for exactly `stored` and is not written yet."""
        draft = self._drafts.get(stored.metadata.name)
        return draft.status if draft and draft.base_version == stored.metadata.resource_version else None

    def drafted(self) -> tuple[str, ...]:
        """Names of the diagnoses that have a status which is not written yet."""
        with self._lock:
            return tuple(self._drafts)

    def _keep(self, item: Diagnosis) -> None:
        name = item.metadata.name
        self._drafts.pop(name, None)
        document = item.status.model_dump_json(by_alias=True, exclude_unset=True)
        self._packed[name] = zlib.compress(document.encode(), level=1)
        self._items[name] = item.model_copy(update={"status": _NO_STATUS})
        self._set_claim(claim_of(item))

    def _set_claim(self, claim: Claim) -> None:
        if self._claims.get(claim.name) != claim:
            self._claims[claim.name] = claim
            self.version += 1

    def _forget(self, name: str) -> None:
        super()._forget(name)
        for kept in (self._packed, self._claims, self._drafts):
            kept.pop(name, None)


@dataclass(frozen=True, slots=True)
class _NodeReading:
    node: Node
    at_seconds: float


class NodeReadings:
    """Nodes as last read. They are not watched: the heartbeats of a fleet are many, runs are few."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._readings: dict[str, _NodeReading] = {}
        self._tidied_at = monotonic()

    def get(self, name: str, max_age_seconds: float) -> Node | None:
        """The node `name`, if it was read at most this long ago."""
        reading = self._readings.get(name)
        if reading is None or self._monotonic() - reading.at_seconds > max_age_seconds:
            return None
        return reading.node

    def put(self, node: Node) -> None:
        """Store a node that was just read."""
        now = self._monotonic()
        self._readings[node.metadata.name] = _NodeReading(node, now)
        if now - self._tidied_at > TIDY_NODES_SECONDS:  # not each time: a run starts with up to a thousand nodes
            self._tidied_at = now
            for name, reading in list(self._readings.items()):
                if now - reading.at_seconds > FORGET_NODE_SECONDS:
                    self._readings.pop(name, None)

    def drop(self, name: str) -> None:
        """Forget a node that does not exist."""
        self._readings.pop(name, None)


class Reports:
    """The existing reports and their sizes. They are not watched: only the operator creates them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reports: dict[str, StoredReport] = {}
        self.is_complete = False
        """Whether a whole list has been put into it since the start."""

    def all(self) -> tuple[StoredReport, ...]:
        """Every report."""
        with self._lock:
            return tuple(self._reports.values())

    def put(self, report: StoredReport) -> None:
        """Store a report that was created."""
        with self._lock:
            self._reports[report.name] = report

    def replace(self, listed: Iterable[StoredReport]) -> None:
        """Store a whole list, which is read here; reports that are created in the meantime stay."""
        with self._lock:
            before = set(self._reports)
        found = {report.name: report for report in listed}
        with self._lock:
            created = {name: report for name, report in self._reports.items() if name not in before}
            self._reports = found | created
            self.is_complete = True

    def drop(self, is_deleted: Callable[[Run], bool]) -> None:
        """Forget the reports of the runs for which `is_deleted` is true."""
        with self._lock:
            self._reports = {name: report for name, report in self._reports.items() if not is_deleted(report.run)}


class Cache:
    """What is known of the cluster: diagnoses, runner pods, nodes and reports."""

    def __init__(self) -> None:
        self.diagnoses = DiagnosisStore()
        self.pods: Store[Pod] = Store()
        self.nodes = NodeReadings()
        self.reports = Reports()
        self._failed_logs: frozenset[str] = frozenset()

    def has_failed_log(self, pod_name: str) -> bool:
        """Whether the last attempt to read the log of a runner pod failed."""
        return pod_name in self._failed_logs

    def note_log(self, pod_name: str, *, failed: bool) -> None:
        """Record how an attempt to read the log of a runner pod ended."""
        known = {name for name in self._failed_logs if self.pods.get(name)} - {pod_name}
        self._failed_logs = frozenset(known | {pod_name} if failed else known)

    def fleet(self) -> Fleet:
        """Everything that holds or wants a slot."""
        return Fleet(pods=self.pods.all(), claims=self.diagnoses.claims())

    @property
    def is_complete(self) -> bool:
        """Whether whole lists of diagnoses and pods have been stored since the start."""
        return self.diagnoses.is_complete and self.pods.is_complete


def _is_newer(version: str, other: str) -> bool:
    """Whether a resource version is later than another; False if they cannot be compared (KEP-5504: they can)."""
    return version.isdecimal() and other.isdecimal() and int(version) > int(other)
