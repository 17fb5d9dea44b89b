"""Only a kubelet's log endpoint: serves files as container logs to the API server.

Run as a script inside the cluster's namespaces: `kubelet_logs.py ADDRESS PORT CERTIFICATE KEY FOLDER`. The log of a pod
is the file of its name in FOLDER. Kubernetes: pkg/kubelet/server/server.go, getContainerLogs.

A file POD.stream makes it a hostile kubelet for that pod: {"totalBytes": N, "chunkBytes": N, "pauseSeconds": S} is sent
regardless of limitBytes.
"""

import json
import ssl
import sys
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit


class LogHandler(BaseHTTPRequestHandler):
    """Answers GET /containerLogs/NAMESPACE/POD/CONTAINER?limitBytes=N."""

    folder: Path

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        pod = url.path.split("/")[3]
        stream = self.folder / f"{pod}.stream"
        if stream.exists():
            with suppress(OSError):  # the reader has closed the connection
                self._send(**json.loads(stream.read_text()))
            return
        file = self.folder / pod
        if not file.exists():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        limits = parse_qs(url.query).get("limitBytes", [])
        log = file.read_bytes()[: int(limits[0]) if limits else None]
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(log)))
        self.end_headers()
        self.wfile.write(log)

    def _send(self, *, totalBytes: int, chunkBytes: int, pauseSeconds: float) -> None:  # noqa: N803 - as in the file
        self.send_response(HTTPStatus.OK)
        self.end_headers()
        for _ in range(totalBytes // chunkBytes):
            self.wfile.write(b"x" * chunkBytes)
            self.wfile.flush()
            time.sleep(pauseSeconds)


def main() -> None:
    address, port, certificate, key, folder = sys.argv[1:]
    LogHandler.folder = Path(folder)
    server = ThreadingHTTPServer((address, int(port)), LogHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
