"""Answers that a node has a hand in: none may be larger or take longer than the operator allows. Over real sockets."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from kubernetes import client

from memdiag_api.framing import MAX_LOG_BYTES
from memdiag_operator.cluster import client as client_module
from memdiag_operator.cluster import fetch
from memdiag_operator.cluster.client import MAX_NODE_PODS_BYTES, KubernetesClient
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.cluster.errors import OversizedError, UnavailableError
from memdiag_operator.cluster.requests import ObservedApiClient, ignore
from memdiag_operator.cluster.store import Cache
from memdiag_operator.kube.objects import Pod
from memdiag_operator.loop import sweep as sweep_module
from memdiag_operator.loop.reconciler import Reconciler
from memdiag_operator.loop.sweep import Sweep
from memdiag_operator.metrics import OperatorMetrics
from support.kubernetes_objects import CONFIG, diagnosis, pod

MEBIBYTE = 1024 * 1024
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def answering(answer: Answer) -> Iterator[KubernetesClient]:
    """A client of a server that answers every request in this way."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with suppress(ConnectionError):
                answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has it
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    api = ObservedApiClient(client_module.configured(client.Configuration(host=_url(server))), ignore)
    try:
        yield KubernetesClient(api)
    finally:
        api.rest_client.pool_manager.clear()
        server.shutdown()
        server.server_close()
        thread.join()


def _url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def head(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()


def chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
    request.wfile.flush()


# --- logs -------------------------------------------------------------------------------------------------------------


def test_of_a_flood_only_the_allowed_bytes_are_read() -> None:
    sent = 0

    def flood(request: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        head(request)
        for _ in range(1024):
            chunk(request, b"x" * MEBIBYTE)
            sent += MEBIBYTE

    with answering(flood) as kubernetes:
        log = kubernetes.read_log("memdiag-runners", "runner")
    assert log == b"x" * MAX_LOG_BYTES
    assert sent < 64 * MEBIBYTE  # what fits into the sockets' buffers, and no drained rest


def test_a_log_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes well within the timeout of a socket, so that only the time of the whole can end it."""
    monkeypatch.setattr(client_module, "LOG_SECONDS", 0.5)
    stopped = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        head(request)
        while not stopped.wait(0.05):
            chunk(request, b"x")

    with answering(drip) as kubernetes:
        with pytest.raises(UnavailableError, match=r"cannot read the log of pod .*too slow"):
            kubernetes.read_log("memdiag-runners", "runner")
        stopped.set()


def test_a_log_that_does_not_start_is_requested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LOG_READ_TIMEOUT_SECONDS", 0.2)
    arrived, stopped = threading.Event(), threading.Event()
    asked = 0

    def silence(_request: BaseHTTPRequestHandler) -> None:
        nonlocal asked
        asked += 1
        arrived.set()
        stopped.wait()

    with answering(silence) as kubernetes:
        with pytest.raises(UnavailableError, match="timed out"):
            kubernetes.read_log("memdiag-runners", "runner")
        assert arrived.wait(60)  # on a busy machine, the request may be handled only after its timeout
        stopped.set()
    assert asked == 1


def test_a_log_that_was_read_to_its_end_leaves_its_connection_for_the_next() -> None:
    connections = set()

    def document(request: BaseHTTPRequestHandler) -> None:
        connections.add(request.client_address)
        head(request)
        chunk(request, b"a document")
        request.wfile.write(b"0\r\n\r\n")

    with answering(document) as kubernetes:
        assert [kubernetes.read_log("memdiag-runners", "runner") for _ in range(3)] == [b"a document"] * 3
    assert len(connections) == 1


# --- pods, whose status the node writes -------------------------------------------------------------------------------


def test_the_pods_of_a_node_are_not_read_without_end() -> None:
    """A node writes up to 1.5 MiB into the status of each of its pods, and makes as many mirror pods as it likes."""
    page = json.dumps(
        {
            "metadata": {"continue": "more"},
            "items": [{"metadata": {"name": "mirror"}, "status": {"message": "x" * MEBIBYTE}}] * 4,
        }
    ).encode()
    asked = 0

    def pages(request: BaseHTTPRequestHandler) -> None:
        nonlocal asked
        asked += 1
        head(request)
        chunk(request, page)
        request.wfile.write(b"0\r\n\r\n")

    with answering(pages) as kubernetes, pytest.raises(OversizedError, match="larger than"):
        kubernetes.list_pods_on_node("hostile")
    assert asked <= 1 + MAX_NODE_PODS_BYTES // len(page)


def test_a_node_whose_pods_cannot_be_read_costs_only_its_own_result() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        head(request)
        body = b"{}" if "log" in request.path else b"x" * (MAX_NODE_PODS_BYTES + 1)
        chunk(request, body)
        request.wfile.write(b"0\r\n\r\n")

    with answering(answer) as kubernetes:
        output = fetch._runner_output(kubernetes, pod())
    assert output.log is None
    assert "larger than" in output.log_error


def test_events_that_may_not_be_read_are_done_without() -> None:
    """A role of a former version does not allow it."""

    def forbidden(request: BaseHTTPRequestHandler) -> None:
        body = json.dumps({"kind": "Status", "reason": "Forbidden", "message": "no"}).encode()
        request.send_response(403)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with answering(forbidden) as kubernetes:
        assert fetch._events(kubernetes, pod()) == ()


# --- others are not kept waiting --------------------------------------------------------------------------------------


class Logs(KubernetesClient):
    """Logs of which some cannot be read; no server is asked."""

    def __init__(self, unreadable: set[str]) -> None:
        super().__init__(client.ApiClient(client.Configuration(host="http://127.0.0.1:1")))
        self.unreadable = unreadable
        self.asked: list[str] = []

    def read_log(self, namespace: str, name: str) -> bytes:
        self.asked.append(name)
        if name in self.unreadable:
            raise UnavailableError("cannot read the log")
        return b""

    def list_pods_on_node(self, node_name: str) -> tuple[Pod, ...]:
        del node_name
        return ()


def test_logs_that_could_not_be_read_come_after_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read takes all of the time for a look, so that there is one a look."""
    monkeypatch.setattr(fetch, "LOGS_SECONDS", -1)
    cache, pods = Cache(), [pod(name=name) for name in ("bad", "good", "better")]
    cache.pods.replace([(pods, "1")])
    logs = Logs({"bad"})
    cluster = Cluster(logs, CONFIG, cache)
    for _ in range(3):
        fetch._runner_outputs(cluster, pods)
    assert logs.asked == ["bad", "good", "good"]


def test_a_look_that_hangs_holds_neither_the_sweep_nor_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "LOOKS_SECONDS", 0.1)
    looked: list[str] = []
    hangs = asyncio.Event()

    class Hanging(Reconciler):
        async def reconcile(self, name: str) -> None:
            looked.append(name)
            if name == "hostile":
                await hangs.wait()

    async def sweep_twice() -> None:
        reconciler = Hanging(Cluster(Logs(set()), CONFIG), OperatorMetrics())
        reconciler.cluster.cache.diagnoses.replace(
            [([diagnosis(name=name, uid=name) for name in ("hostile", "other")], "1")]
        )
        reconciler.cluster.cache.pods.replace([([], "1")])
        sweep = Sweep(reconciler)
        monkeypatch.setattr(sweep, "_relist", _nothing)
        for _ in range(2):
            await asyncio.wait_for(sweep._sweep(), timeout=60)
        await reconciler.stop()

    asyncio.run(sweep_twice())
    assert sorted(looked) == ["hostile", "hostile", "other", "other"]


async def _nothing() -> None:
    return
