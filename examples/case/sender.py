"""Clients outside the node: small pieces of uploads to nginx, with bulk data to the healthy reader in between.

Usage: sender.py NGINX_ADDRESS HEALTHY_ADDRESS. Executes commands from standard input and answers each with one line:

    open COUNT            open COUNT uploads, and wait until each has been accepted
    get PATH              request PATH from nginx on a new connection, without waiting for the response
    send PER_SECOND COUNT send COUNT pieces, to each upload in turn, and wait until they have arrived
    send PER_SECOND       send pieces until the next command arrives, which is then executed
"""

import fcntl
import itertools
import select
import socket
import sys
import termios
import time

# A packet of up to 128 bytes is copied out of the block that it arrived in; the rest of a longer packet stays there.
PIECE = b"p" * 140
# Larger than a block of 32 KiB, so that the next piece arrives in another block.
BULK = b"b" * 65_536
HTTP_PORT, HEALTHY_PORT = 80, 9001
ARRIVAL_SECONDS = 30

nginx, healthy_address = sys.argv[1:]
uploads: list[socket.socket] = []
kept: list[socket.socket] = []
sent_bytes = [0]


def connect(address: str, port: int) -> socket.socket:
    """Connect without send delay (TCP_NODELAY); waits until the server accepts connections."""
    for attempts_left in range(100, -1, -1):
        try:
            connection = socket.create_connection((address, port), timeout=30)
        except ConnectionRefusedError:
            if not attempts_left:
                raise
            time.sleep(0.5)
        else:
            break
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def open_uploads(count: int) -> str:
    """Start uploads far larger than what will be sent; nginx responds when it has read the header of one."""
    for number in range(count):
        upload = connect(nginx, HTTP_PORT)
        request = (
            f"PUT /upload/{number} HTTP/1.1\r\nHost: web\r\nContent-Length: 1000000000\r\nExpect: 100-continue\r\n\r\n"
        )
        upload.sendall(request.encode())
        answer = upload.recv(1000)
        if b" 100 " not in answer:
            raise SystemExit(f"nginx answered {answer!r}")
        upload.setblocking(False)
        uploads.append(upload)
    return f"{count} uploads open"


def get(path: str) -> str:
    """Send a request, and do not wait for the response."""
    connection = connect(nginx, HTTP_PORT)
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
    kept.append(connection)
    return f"asked for {path}"


def not_arrived_bytes(connection: socket.socket) -> int:
    """The number of sent bytes that the peer has not acknowledged."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def send(per_second: float, count: int | None) -> str:
    """Send pieces at a constant rate, or as fast as the healthy reader reads; without `count`, until a line arrives."""
    start = time.monotonic()
    refused = 0
    for number in itertools.count() if count is None else range(count):
        if count is None and select.select([sys.stdin], [], [], 0)[0]:
            break
        try:
            sent_bytes.append(uploads[number % len(uploads)].send(PIECE))
        except BlockingIOError:  # the queue is full: it pins as much as it can
            refused += 1
        bulk.sendall(BULK)
        time.sleep(max(0.0, start + number / per_second - time.monotonic()))
    for _ in range(ARRIVAL_SECONDS * 10):
        if not any(map(not_arrived_bytes, uploads)):
            break
        time.sleep(0.1)
    return f"{sum(sent_bytes)} bytes sent so far, {refused} pieces refused"


bulk = connect(healthy_address, HEALTHY_PORT)
print("ready", flush=True)
while line := sys.stdin.readline():
    match line.split():
        case ["open", count]:
            print(open_uploads(int(count)), flush=True)
        case ["get", path]:
            print(get(path), flush=True)
        case ["send", per_second]:
            print(send(float(per_second), None), flush=True)
        case ["send", per_second, count]:
            print(send(float(per_second), int(count)), flush=True)
        case ["stop"]:
            pass
