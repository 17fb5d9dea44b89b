"""Accepts connections and reads data as fast as it arrives."""

import socket
import threading

PORT = 9001


def drain(connection: socket.socket) -> None:
    """Read until the peer closes."""
    buffer = bytearray(1 << 20)
    while connection.recv_into(buffer):
        pass


listener = socket.create_server(("", PORT), backlog=64)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=drain, args=(accepted,), daemon=True).start()
