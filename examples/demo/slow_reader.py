"""Accepts connections and never reads from them: all data stays in the receive queues of the sockets."""

import socket

PORT = 9000
# The most that an unprivileged process may set. A small buffer is enough: it limits unread data, not what that pins.
RECEIVE_BUFFER_BYTES = 212_992

listener = socket.create_server(("", PORT), backlog=64)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)  # accepted connections inherit it
connections = []
while True:
    connection, peer = listener.accept()
    connections.append(connection)
    print(f"accepted {peer[0]}:{peer[1]} as fd {connection.fileno()}; not reading it", flush=True)
