"""Accepts connections and never reads them: what arrives stays in the sockets' receive queues."""

import socket

PORT = 9000
# As much as an ordinary process may ask for. A small buffer is enough: it bounds what is unread, not what that pins.
RECEIVE_BUFFER_BYTES = 212_992

listener = socket.create_server(("", PORT), backlog=64)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)  # accepted connections inherit it
connections = []
while True:
    connection, peer = listener.accept()
    connections.append(connection)
    print(f"accepted {peer[0]}:{peer[1]} as fd {connection.fileno()}; not reading it", flush=True)
