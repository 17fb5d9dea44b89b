"""A proxy in front of the API server that injects faults: returns errors, loses responses, cuts and freezes watches.

It runs in the test's own process. The operator under test reaches the API server only through it, with its own token;
all other clients bypass it.
"""

import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

ADDRESS = "127.0.0.1"
UPSTREAM_TIMEOUT_SECONDS = 400
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "te", "upgrade"})


@dataclass
class Fault:
    """The fault for the next `times` matching requests of each kind.

    `lose` carries out a request and closes the connection without a response; `refuse` closes it at once; a number is
    the status code of a response in place of the API server's.
    """

    what: int | Literal["lose", "refuse"]
    methods: tuple[str, ...] = ()
    path: str = ""
    times: int = 1
    reason: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    when: Callable[[], bool] = lambda: True
    then: Callable[[], None] = lambda: None
    """Called when the fault happens, before the connection is closed or the response is sent."""
    seen: Counter[str] = field(default_factory=Counter)

    def strikes(self, method: str, path: str) -> bool:
        """Whether the fault applies to this request, which is then counted."""
        if (self.methods and method not in self.methods) or not re.search(self.path, urlsplit(path).path):
            return False
        if not self.when():
            return False
        kind = f"{method} {_without_names(path)}"
        self.seen[kind] += 1
        return self.seen[kind] <= self.times


class FaultProxy:
    """The proxy, without faults until some are set."""

    def __init__(self, upstream: str, pki: Path) -> None:
        self._upstream = urlsplit(upstream)
        self._trust = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._watches: set[socket.socket] = set()
        self._frozen = threading.Event()
        self.is_refusing_watches = False
        self.requests: Counter[str] = Counter()
        """The number of requests, by method and path without names."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server((ADDRESS, 0), handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki / "apiserver.crt", pki / "apiserver.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The URL that it listens on."""
        return f"https://{ADDRESS}:{self._server.server_address[1]}"

    def stop(self) -> None:
        """Stop listening, and cut open connections."""
        self._server.shutdown()
        self.cut_watches()
        self._server.server_close()

    def set(self, *faults: Fault) -> None:
        """Inject these faults and no others."""
        with self._lock:
            self._faults = list(faults)

    def cut_watches(self) -> None:
        """Close the connections of all watches."""
        with self._lock:
            cut, self._watches = self._watches, set()
        for connection in cut:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def without_watches(self) -> Iterator[None]:
        """Cut all watches and refuse new ones."""
        self.is_refusing_watches = True
        self.cut_watches()
        try:
            yield
        finally:
            self.is_refusing_watches = False

    @contextmanager
    def frozen_watches(self) -> Iterator[None]:
        """Deliver nothing more on any watch, while its connection stays open, as if the network dropped it."""
        self._frozen.set()
        try:
            yield
        finally:
            self._frozen.clear()

    def meet(self, method: str, path: str) -> Fault | None:
        """The fault for this request, if any."""
        with self._lock:
            fault = next((fault for fault in self._faults if fault.strikes(method, path)), None)
            self.requests[f"{method} {_without_names(path)}"] += 1
            return fault

    @contextmanager
    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> Iterator[http.client.HTTPResponse]:
        """Forward to the API server. Raises OSError if it does not respond."""
        host, port = self._upstream.hostname or "", self._upstream.port
        connection = http.client.HTTPSConnection(host, port, context=self._trust, timeout=UPSTREAM_TIMEOUT_SECONDS)
        try:
            connection.request(method, path, body or None, headers)
            with connection.getresponse() as response:
                yield response
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def pass_on(self, response: http.client.HTTPResponse, client: BaseHTTPRequestHandler) -> None:
        """Stream a watch until one side ends it."""
        with socket.socket(fileno=os.dup(response.fileno())) as upstream:
            ends = {upstream, client.connection}
            with self._lock:
                self._watches |= ends
            try:
                while chunk := response.read1(1 << 16):
                    while self._frozen.is_set():
                        time.sleep(0.05)
                    client.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    client.wfile.flush()
                client.wfile.write(b"0\r\n\r\n")
            finally:
                with self._lock:
                    self._watches -= ends


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections that end early, which is intended here."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        is_watch = parse_qs(urlsplit(self.path).query).get("watch") == ["true"]
        if is_watch and self.proxy.is_refusing_watches:
            self.close_connection = True
            return
        fault = self.proxy.meet(self.command, self.path)
        if fault and fault.what == "refuse":
            fault.then()
            self.close_connection = True
        elif fault and isinstance(fault.what, int):
            fault.then()
            self._answer(fault)
        else:
            self._forward(body, fault, is_watch=is_watch)

    def _forward(self, body: bytes, fault: Fault | None, *, is_watch: bool) -> None:
        headers = {key: value for key, value in self.headers.items() if key.lower() not in _HOP_BY_HOP}
        try:
            with self.proxy.forward(self.command, self.path, headers, body) as response:
                if fault:
                    response.read()
                    fault.then()
                    self.close_connection = True
                else:
                    self._pass_on(response, is_watch=is_watch and response.status == HTTPStatus.OK)
        except OSError:
            self.close_connection = True  # like an API server that is down

    def _pass_on(self, response: http.client.HTTPResponse, *, is_watch: bool) -> None:
        content = b"" if is_watch else response.read()
        self.send_response_only(response.status)
        for key, value in response.getheaders():
            if key.lower() not in _HOP_BY_HOP:
                self.send_header(key, value)
        if is_watch:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            self.proxy.pass_on(response, self)
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _answer(self, fault: Fault) -> None:
        code = int(fault.what)
        status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": fault.reason or HTTPStatus(code).phrase.replace(" ", ""),
            "message": f"a bad day: {code}",
            "code": code,
        }
        content = json.dumps(status).encode()
        self.send_response_only(code)
        self.send_header("Content-Type", "application/json")
        for key, value in fault.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _without_names(path: str) -> str:
    """The kind of a request's path: without names of objects."""
    parts = urlsplit(path)
    words = parts.path.strip("/").split("/")
    known = {"api", "apis", "v1", "memdiag.dev", "v1alpha1", "namespaces", "status", "log"}
    plurals = {"pods", "nodes", "events", "memorydiagnoses", "memorydiagnosisreports"}
    kind = "/".join(word if word in known | plurals else "*" for word in words)
    return f"{kind}?watch" if "watch=true" in parts.query else kind


@contextmanager
def fault_proxy(upstream: str, pki: Path) -> Iterator[FaultProxy]:
    """A proxy for the duration of the body."""
    proxy = FaultProxy(upstream, pki)
    try:
        yield proxy
    finally:
        proxy.set()
        proxy.stop()
