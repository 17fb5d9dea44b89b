"""Sends tiny messages to the slow reader, and after each of them a block to the healthy reader.

The kernel allocates both from the sender's current 32 KiB page fragment. The block is read and freed at once, but the
unread tiny message keeps its whole fragment: 64 bytes pin 32 KiB.
"""

import itertools
import os
import socket
import time

MESSAGE = b"m" * 64
BLOCK = b"b" * 32_768
CONNECTIONS = 12
MESSAGES_PER_SECOND = 100.0


def connect(service: str) -> socket.socket:
    """Connect to a service in this namespace; waits until it accepts connections."""
    address = (os.environ[f"{service}_SERVICE_HOST"], int(os.environ[f"{service}_SERVICE_PORT"]))
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
        except OSError as error:
            print(f"{service}: {error}; trying again", flush=True)
            time.sleep(0.5)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


healthy = connect("HEALTHY_READER")
connections = []  # kept open: the kernel would keep the unsent messages of a closed one
unread_bytes = 0
for number in range(1, CONNECTIONS + 1):
    slow = connect("SLOW_READER")
    slow.setblocking(False)
    connections.append(slow)
    for count in itertools.count(1):
        try:
            slow.send(MESSAGE)
        except BlockingIOError:  # the queue is full: it pins as much as it can
            break
        healthy.sendall(BLOCK)
        unread_bytes += len(MESSAGE)
        if count % 100 == 0:
            print(f"connection {number}: {unread_bytes} bytes sent to the slow reader in total", flush=True)
        time.sleep(1 / MESSAGES_PER_SECOND)
print("every connection is full; waiting", flush=True)
time.sleep(10**8)
