"""The cost of the operator on a large cluster: 1,000 nodes, 200 diagnoses, and one diagnosis of all nodes.

    python tests/bench/operator_scale.py [--nodes 1000] [--diagnoses 200] [--write docs/benchmarks.md]

etcd, kube-apiserver and kube-scheduler are real. kwok plays the kubelets: it reports the nodes and brings pods to
Running. Then a player does the runner's part: it puts a framed evidence document where the API server finds the
container's log, and reports the container as ended, with the termination message that belongs to the document. So the
operator reads results as usual: from the pod's status and through the log subresource of the API server, from the
kubelet's endpoint of the node. Requests are counted by the API server's audit log.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

from kubernetes import client, watch
from kubernetes.config import new_client_from_config

from local_cluster.paths import PROJECT
from memdiag_api.diagnosis import GROUP, VERSION, MemoryDiagnosis
from memdiag_api.report import MemoryDiagnosisReport
from memdiag_operator.cluster.store import Cache
from memdiag_operator.decide.slots import allot
from memdiag_operator.kube.objects import Diagnosis
from support import audit, kwok
from support.benchmarks import machine, write_section
from support.cluster import TestCluster, running_cluster
from support.control_plane import ControlPlane
from support.hollow_node import LOG_PORT, RUNNERS, log_endpoint, now
from support.operator_process import OperatorProcess, running_operator
from support.runner_player import HOLDERS, LEAK_EVERY, RUNNER_SECONDS, STACKS, WATCH_SECONDS, RunnerPlayer
from support.watch_thread import Event, WatchThread

NODES_PER_DIAGNOSIS = 5
BUDGET_MIB = 24
"""The budget for stored reports: less than the run on all nodes would store."""
QUEUED_DIAGNOSES, QUEUED_NODES = 100, 1000
SLOTS = 30
IDLE_SECONDS = 300
ROUND_SECONDS = 1800
ETCD_PUT_BYTES = "etcd_debugging_mvcc_total_put_size_in_bytes"
ETCD_METRICS = "http://127.0.0.1:2379/metrics"


@dataclass
class Round:
    """The cost of one round."""

    diagnoses: int
    node_runs: int
    seconds: float
    cpu_seconds: float
    resident_mib: float
    requests: Counter[str] = field(default_factory=Counter)
    written_bytes: float = 0
    stored_bytes: float = 0
    report_bytes: float = 0
    status_bytes: int = 0
    """The size of all versions of all diagnoses' statuses."""
    last_status_bytes: int = 0
    """The size of the largest status at the end."""


class Bench:
    """A cluster of the given number of nodes, with a running operator."""

    def __init__(
        self, cluster: TestCluster, operator: OperatorProcess, audit_log: audit.AuditLog, statuses: "StatusReader"
    ) -> None:
        self._cluster = cluster
        self._operator = operator
        self._audit = audit_log
        self._plane = ControlPlane(cluster)
        self._custom = client.CustomObjectsApi(_admin(cluster))
        self._statuses = statuses

    def round(self, name: str, targets: list[dict[str, Any]], node_runs: int) -> Round:
        """Clean up after the last round, create a diagnosis of each target at once, and wait for all to end."""
        for plural in (MemoryDiagnosis.PLURAL, MemoryDiagnosisReport.PLURAL):
            self._custom.delete_collection_cluster_custom_object(GROUP, VERSION, plural)
        finished = self._finished()
        start, written = self._audit.position(), self._written_bytes()
        cpu, began = self._operator.cpu_seconds(), time.monotonic()
        self._operator.forget_peak()
        self._statuses.read_bytes = 0
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda one: self._ask(f"{name}-{one[0]}", one[1]), enumerate(targets)))
        self._wait(lambda: self._finished() - finished == len(targets) and not self._pods())
        done = Round(
            diagnoses=len(targets),
            node_runs=node_runs,
            seconds=time.monotonic() - began,
            cpu_seconds=self._operator.cpu_seconds() - cpu,
            resident_mib=self._operator.peak_memory_bytes() / (1 << 20),
            written_bytes=self._written_bytes() - written,
            stored_bytes=sum(map(self._stored_bytes, (MemoryDiagnosis.PLURAL, MemoryDiagnosisReport.PLURAL))),
            report_bytes=self._stored_bytes(MemoryDiagnosisReport.PLURAL),
            status_bytes=self._statuses.read_bytes,
            last_status_bytes=max(_size_bytes(one["status"]) for one in self._diagnoses()),
        )
        done.requests = self._audit.requests(start)
        self._check(node_runs)
        return done

    def idle(self, seconds: int) -> tuple[float, float]:
        """Requests and CPU seconds per minute when idle, with the finished diagnoses still there."""
        start, cpu = self._audit.position(), self._operator.cpu_seconds()
        time.sleep(seconds)
        minutes = seconds / 60
        return self._audit.requests(start).total() / minutes, (self._operator.cpu_seconds() - cpu) / minutes

    def _ask(self, name: str, target: dict[str, Any]) -> None:
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": MemoryDiagnosis.KIND,
            "metadata": {"name": name},
            "spec": {"target": target, "duration": "5s", "activeDeadlineSeconds": 3600},
        }
        self._custom.create_cluster_custom_object(GROUP, VERSION, MemoryDiagnosis.PLURAL, body)

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ROUND_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not within {ROUND_SECONDS} s; the operator says:\n{self._operator.log[-4000:]}")
            time.sleep(0.5)

    def _finished(self) -> int:
        """Runs that have ended, as counted by the operator: listing them repeatedly would add load."""
        found = re.findall(r"^memdiag_runs_total\{.*\} (\S+)$", self._operator.scrape(), re.MULTILINE)
        return int(sum(map(float, found)))

    def _pods(self) -> str:
        return self._cluster.kubectl("-n", RUNNERS, "get", "pods", "-o", "name")

    def _check(self, node_runs: int) -> None:
        items = self._diagnoses()
        counts = [one["status"]["nodes"] for one in items]
        succeeded = sum(one.get("succeeded", 0) for one in counts)
        if succeeded != node_runs:
            summaries = {one["status"].get("summary", "") for one in items if one["status"]["nodes"].get("failed")}
            raise RuntimeError(f"{succeeded} of {node_runs} node runs succeeded: {summaries}")

    def _written_bytes(self) -> float:
        """The bytes written to etcd since its start, by all writers."""
        script = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"
        metrics = self._plane.inside(sys.executable, "-c", script, ETCD_METRICS)
        return next(float(line.split()[1]) for line in metrics.splitlines() if line.startswith(ETCD_PUT_BYTES))

    def _diagnoses(self) -> list[dict[str, Any]]:
        listed: Any = self._custom.list_cluster_custom_object(GROUP, VERSION, MemoryDiagnosis.PLURAL)
        items: list[dict[str, Any]] = listed["items"]
        return items

    def _stored_bytes(self, plural: str) -> int:
        """Custom resources are stored as JSON, as the API server returns them."""
        return len(self._cluster.kubectl("get", "--raw", f"/apis/{GROUP}/{VERSION}/{plural}"))


class StatusReader:
    """Sums up the written statuses: a watch delivers every version."""

    def __init__(self, api: client.ApiClient) -> None:
        self._custom = client.CustomObjectsApi(api)
        self._version: str | None = None
        self.read_bytes = 0
        self._watch = WatchThread(self._open_stream, self._add)

    def stop(self) -> None:
        """Stop reading."""
        self._watch.stop()

    def _open_stream(self) -> Iterable[Event]:
        stream: Iterable[Event] = watch.Watch().stream(  # type: ignore[no-untyped-call] # there
            self._custom.list_cluster_custom_object,
            *(GROUP, VERSION, MemoryDiagnosis.PLURAL),
            resource_version=self._version,
            timeout_seconds=WATCH_SECONDS,
        )
        return stream

    def _add(self, event: Event) -> None:
        self._version = event["object"]["metadata"]["resourceVersion"]
        if event["type"] == "MODIFIED":
            self.read_bytes += _size_bytes(event["object"]["status"])


def _size_bytes(document: dict[str, Any]) -> int:
    return len(json.dumps(document, separators=(",", ":")).encode())


@contextmanager
def large_cluster(nodes: int, folder: Path) -> Iterator[Bench]:
    """Real etcd, kube-apiserver and scheduler; nodes by kwok; runners by a Player; the operator as its own process."""
    with ExitStack() as stack:
        cluster = stack.enter_context(running_cluster("bench", "--api-only"))
        plane = ControlPlane(cluster)
        audit_log = audit.start(plane, folder)
        scheduler = plane.pki / "scheduler.kubeconfig"
        plane.start(
            "kube-scheduler",
            [str(plane.binaries / "kube-scheduler"), f"--kubeconfig={scheduler}", "--leader-elect=false"],
        )
        cluster.kubectl("apply", "--server-side", "-k", str(PROJECT / "manifests/overlays/embedded"))
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        logs = folder / "logs"
        logs.mkdir()
        address = stack.enter_context(log_endpoint(cluster, logs))
        plane.start(
            "kwok",
            [
                *(str(kwok.provide()), f"--kubeconfig={cluster.kubeconfig}", "--manage-all-nodes"),
                *(f"--node-ip={address}", f"--node-port={LOG_PORT}", "--node-lease-duration-seconds=600"),
                "--server-address=127.0.0.1:10247",
            ],
        )
        _create_nodes(cluster, nodes)
        player = RunnerPlayer(_admin(cluster), logs)
        stack.callback(player.stop)
        config: dict[str, object] = {
            "runner": {"image": "memdiag.dev/node-runner:dev", "allowTags": True},
            "maxConcurrentRunners": SLOTS,
            "limits": {"storedReportsMebibytes": BUDGET_MIB},
        }
        operator = stack.enter_context(running_operator(cluster, folder / "operator", config))
        statuses = StatusReader(_admin(cluster))
        stack.callback(statuses.stop)
        yield Bench(cluster, operator, audit_log, statuses)


def _admin(cluster: TestCluster) -> client.ApiClient:
    api: client.ApiClient = new_client_from_config(str(cluster.kubeconfig))  # type: ignore[no-untyped-call] # there
    return api


def _create_nodes(cluster: TestCluster, count: int) -> None:
    core = client.CoreV1Api(_admin(cluster))

    def create(number: int) -> None:
        labels = {"kubernetes.io/os": "linux", "group": f"group-{number // NODES_PER_DIAGNOSIS}"}
        resources = {"memory": "64Gi", "cpu": "16", "pods": "110"}
        node: Any = {
            "metadata": {"name": _node_name(number), "labels": labels},
            "status": {"capacity": resources, "allocatable": resources},
        }
        core.create_node(node)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(count)))
    deadline = time.monotonic() + ROUND_SECONDS
    while True:
        ready = cluster.kubectl(
            "get", "nodes", "-o", 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
        )
        if ready.split().count("True") == count:
            # The controller manager, which is not there, would do that.
            cluster.kubectl("taint", "nodes", "--all", "node.kubernetes.io/not-ready-")
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{ready.split().count('True')} of {count} nodes are Ready")
        time.sleep(1)


def _node_name(number: int) -> str:
    return f"node-{number:04}"


def _one_node_each(count: int) -> list[dict[str, Any]]:
    return [{"nodeName": _node_name(number)} for number in range(count)]


def _several_nodes_each(count: int) -> list[dict[str, Any]]:
    return [
        {"nodeSelector": {"matchLabels": {"group": f"group-{number}"}}, "maxNodes": NODES_PER_DIAGNOSIS}
        for number in range(count)
    ]


def _all_nodes(count: int) -> list[dict[str, Any]]:
    return [{"nodeSelector": {"matchLabels": {"kubernetes.io/os": "linux"}}, "maxNodes": count}]


@dataclass(frozen=True)
class Queue:
    """The cost of deciding who gets a slot, with very many waiting."""

    cache_mib: float
    milliseconds: dict[int, float]
    """CPU time, by the number of slots."""

    @classmethod
    def measure(cls) -> "Queue":
        """Measure it in this process: the operator's cache, and its decision from the cache."""
        tracemalloc.start()
        cache = Cache()
        for number in range(QUEUED_DIAGNOSES):
            cache.diagnoses.put(_waiting(number))
        cache_mib = tracemalloc.get_traced_memory()[0] / (1 << 20)
        tracemalloc.stop()
        return cls(cache_mib, {slots: _allotment_milliseconds(cache, slots) for slots in (SLOTS, 1000)})


def _allotment_milliseconds(cache: Cache, slots: int) -> float:
    times = []
    for _ in range(9):
        began = time.process_time()
        allotment = allot(cache.fleet(), slots, datetime.now(UTC))
        times.append((time.process_time() - began) * 1000)
        if allotment.queue_length != QUEUED_DIAGNOSES * QUEUED_NODES or len(allotment.admitted) != slots:
            raise RuntimeError(f"{len(allotment.admitted)} of {allotment.queue_length} are admitted")
    return median(times)


def _waiting(number: int) -> Diagnosis:
    """A diagnosis of many nodes that has just started; all want the same nodes."""
    target = _all_nodes(QUEUED_NODES)[0]
    states = [{"nodeName": f"{_node_name(node)}.example.internal", "reason": "Pending"} for node in range(QUEUED_NODES)]
    status = {"observedGeneration": 1, "runID": f"run-{number}", "startTime": now(), "nodeStates": states}
    meta = {"name": f"queued-{number}", "uid": f"uid-{number}", "generation": 1}
    return Diagnosis.model_validate({"metadata": meta, "spec": {"target": target}, "status": status})


def measure(nodes: int, diagnoses: int, idle_seconds: int) -> str:
    """Run the rounds; returns the tables as Markdown."""
    queue = Queue.measure()
    with tempfile.TemporaryDirectory() as name, large_cluster(nodes, Path(name)) as bench:
        bench.round("warm-up", _one_node_each(5), 5)
        rounds = []
        for count in (diagnoses // 4, diagnoses // 2, diagnoses):
            rounds.append(bench.round(f"single-{count}", _one_node_each(count), count))
            _report(rounds[-1])
        several = bench.round("several", _several_nodes_each(diagnoses), diagnoses * NODES_PER_DIAGNOSIS)
        _report(several)
        idle_requests, idle_cpu = bench.idle(idle_seconds)
        whole = bench.round("all", _all_nodes(nodes), nodes)
        _report(whole)
    tables = _tables(nodes, [*rounds, several, whole], idle_seconds, idle_requests, idle_cpu)
    return f"{tables}\n{_bounds(queue, several, whole)}"


def _bounds(queue: Queue, several: Round, whole: Round) -> str:
    steps = 2 * whole.node_runs
    return f"""\
**What bounds it** ([limits](configuration.md#limits)). Who gets a slot is decided from {QUEUED_DIAGNOSES} diagnoses of
{QUEUED_NODES} nodes each in {queue.milliseconds[SLOTS]:.1f} ms of CPU time with {SLOTS} slots and in
{queue.milliseconds[1000]:.1f} ms with 1,000; the cache of these diagnoses takes {queue.cache_mib:.1f} MiB.

The run on {whole.node_runs} nodes wrote {whole.status_bytes / (1 << 20):.1f} MiB of statuses in
{whole.requests["update memorydiagnoses/status"]} writes; its status had {whole.last_status_bytes / 1024:.0f} KiB at
the end. Writing that at the start and end of each node's run would take
{steps * whole.last_status_bytes / (1 << 20):.0f} MiB.

The budget for reports was {BUDGET_MIB} MiB. After the diagnoses of {NODES_PER_DIAGNOSIS} nodes, which delivered
{several.node_runs} results, {several.report_bytes / (1 << 20):.1f} MiB were stored; after the run on all nodes
{whole.report_bytes / (1 << 20):.1f} MiB.
"""


def _report(one: Round) -> None:
    print(
        f"{one.diagnoses} diagnoses, {one.node_runs} node runs: {one.seconds:.1f} s, "
        f"{one.requests.total() / one.node_runs:.1f} requests each, {one.resident_mib:.0f} MiB",
        file=sys.stderr,
    )


def _tables(nodes: int, rounds: list[Round], idle_seconds: int, idle_requests: float, idle_cpu: float) -> str:
    single, several, whole = rounds[-3:]
    kinds = sorted(set(single.requests) | set(several.requests) | set(whole.requests))
    shares = [[kind, *(f"{one.requests[kind] / one.node_runs:.2f}" for one in rounds[-3:])] for kind in kinds]
    first, second, third = rounds[:3]
    without_events = [(one.requests.total() - one.requests["create events"]) / one.node_runs for one in rounds[-3:]]
    return f"""\
{nodes} nodes, {SLOTS} runner slots; a runner works for {RUNNER_SECONDS:.0f} s and delivers {HOLDERS} holders and
{STACKS} stacks; one run in {LEAK_EVERY} finds a leak.

{_table(list(_COLUMNS), [[show(one) for show in _COLUMNS.values()] for one in rounds])}

For twice the diagnoses, the operator takes {second.cpu_seconds / first.cpu_seconds:.1f} and
{third.cpu_seconds / second.cpu_seconds:.1f} times the CPU time. The seconds are those of the whole cluster on this
machine. Written bytes are those of all programs to etcd, including the scheduler and kwok.

Without events for users, a node run takes {without_events[0]:.1f} requests in a diagnosis of one node,
{without_events[1]:.1f} in one of {NODES_PER_DIAGNOSIS} and {without_events[2]:.1f} in one of all nodes. A trace of 60 s
reports its progress in up to 4 more writes of the status.

{_table(["requests per node run", "one node each", f"{NODES_PER_DIAGNOSIS} nodes each", "all nodes"], shares)}

Idle for {idle_seconds} s, with the diagnoses of {NODES_PER_DIAGNOSIS} nodes still there: {idle_requests:.1f} requests,
including watches, and {idle_cpu:.2f} s of CPU per minute.
"""


_COLUMNS: dict[str, Callable[[Round], str]] = {
    "diagnoses": lambda one: str(one.diagnoses),
    "node runs": lambda one: str(one.node_runs),
    "seconds": lambda one: f"{one.seconds:.1f}",
    "ms per node run": lambda one: f"{one.seconds / one.node_runs * 1000:.0f}",
    "operator's CPU ms per node run": lambda one: f"{one.cpu_seconds / one.node_runs * 1000:.0f}",
    "requests per node run": lambda one: f"{one.requests.total() / one.node_runs:.1f}",
    "peak RSS, MiB": lambda one: f"{one.resident_mib:.0f}",
    "events per s": lambda one: f"{one.requests['create events'] / one.seconds:.1f}",
    "stored KiB per node run": lambda one: f"{one.stored_bytes / one.node_runs / 1024:.0f}",
    "written KiB per node run": lambda one: f"{one.written_bytes / one.node_runs / 1024:.0f}",
}


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Measure and print; with --write, replace the section `The operator on a large cluster` of a Markdown file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--diagnoses", type=int, default=200)
    parser.add_argument("--idle-seconds", type=int, default=IDLE_SECONDS)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("a cluster needs root", file=sys.stderr)
        return 2
    text = f"{_EXPLANATION}\n{machine()}.\n\n{measure(options.nodes, options.diagnoses, options.idle_seconds)}"
    print(text)
    if options.write:
        write_section(options.write, "The operator on a large cluster", text)
    return 0


_EXPLANATION = """\
`make bench-operator` runs the operator against a real etcd, kube-apiserver and kube-scheduler. kwok plays the kubelets;
a player puts a runner's results into the pod's status and where the API server finds a container's log, so results are
read as in production. All diagnoses of a round are created at once. Requests are counted by the API server's audit log,
including watches and lists.
"""


if __name__ == "__main__":
    sys.exit(main())
