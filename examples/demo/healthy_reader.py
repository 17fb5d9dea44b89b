"""Accepts connections and reads data as fast as it arrives."""

import socket
import threading

PORT = 9001


def drain(connection: socket.socket) -> None:
    """Read until the peer closes."""
    while connection.recv(1 << 20):
        pass


listener = socket.create_server(("", PORT), backlog=64)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=drain, args=(accepted,), daemon=True).start()
