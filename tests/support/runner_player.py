"""Plays the runners while kwok plays the kubelets: serves their documents where the API server finds a log."""

import itertools
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from memdiag_api.evidence import Evidence, VerdictKind
from support.evidence import evidence_with
from support.hollow_node import RUNNERS, container, now
from support.kubernetes_objects import delivered
from support.watch_thread import Event, WatchThread

RUNNER_SECONDS = 1.0
RUNNERS_AT_ONCE = 32
WATCH_SECONDS = 10
LEAK_EVERY = 10
HOLDERS, STACKS = 40, 20


class RunnerPlayer:
    """Acts like runners: a second after a runner pod runs, its log and its termination message are there."""

    def __init__(self, api: client.ApiClient, logs: Path) -> None:
        self._core = client.CoreV1Api(api)
        self._logs = logs
        self._pool = ThreadPoolExecutor(RUNNERS_AT_ONCE)
        self._seen: set[str] = set()
        self._numbers = itertools.count(1)
        self._stopped = threading.Event()
        self._watch = WatchThread(self._open_stream, self._look_at)

    def stop(self) -> None:
        """Stop playing."""
        self._stopped.set()
        self._watch.stop()
        self._pool.shutdown(cancel_futures=True)

    def _open_stream(self) -> Iterable[Event]:
        pods = self._core.list_namespaced_pod
        stream: Iterable[Event] = watch.Watch().stream(pods, RUNNERS, timeout_seconds=WATCH_SECONDS)  # type: ignore[no-untyped-call] # there
        return stream

    def _look_at(self, event: Event) -> None:
        pod = event["object"]
        if pod.status.phase == "Running" and pod.metadata.uid not in self._seen and not self._stopped.is_set():
            self._seen.add(pod.metadata.uid)
            self._pool.submit(self._finish, pod)

    def _finish(self, pod: Any) -> None:
        if self._stopped.wait(RUNNER_SECONDS):
            return
        meta = pod.metadata
        node, run = meta.annotations["memdiag.dev/node"], meta.labels["memdiag.dev/run-id"]
        message, log = delivered(_evidence(node, run, leak=next(self._numbers) % LEAK_EVERY == 0))
        (self._logs / meta.name).write_bytes(log)
        ended = container({"terminated": {"exitCode": 0, "message": message, "finishedAt": now()}})
        try:
            self._core.patch_namespaced_pod_status(meta.name, RUNNERS, {"status": {"phase": "Succeeded", **ended}})
        except ApiException as error:
            print(f"{meta.name}: {error}", file=sys.stderr)


def _evidence(node: str, run: str, *, leak: bool) -> Evidence:
    found = evidence_with(holders=HOLDERS, stacks=STACKS, run_id=run)
    host = found.host.model_copy(update={"node_name": node})
    verdict = found.verdict
    if not leak:
        verdict = verdict.model_copy(update={"kind": VerdictKind.NO_LEAK, "holder": None, "stack": None})
    return found.model_copy(update={"host": host, "verdict": verdict})
