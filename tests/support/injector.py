"""A mutating webhook like those of sidecar injectors: patches every pod that it reviews.

Run as a script inside the cluster's namespaces: `injector.py ADDRESS PORT CERTIFICATE KEY FILE`. FILE holds the JSON
patch. Kubernetes: staging/src/k8s.io/api/admission/v1/types.go, AdmissionReview.
"""

import base64
import json
import ssl
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class InjectionHandler(BaseHTTPRequestHandler):
    """Answers POST of an AdmissionReview."""

    file: Path

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        review["response"] = {
            "uid": review.pop("request")["uid"],
            "allowed": True,
            "patchType": "JSONPatch",
            "patch": base64.b64encode(self.file.read_bytes()).decode(),
        }
        body = json.dumps(review).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    address, port, certificate, key, file = sys.argv[1:]
    InjectionHandler.file = Path(file)
    server = ThreadingHTTPServer((address, int(port)), InjectionHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
