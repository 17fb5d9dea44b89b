"""Sockets between virtual machines and their host."""

import socket
from pathlib import Path

from planted.sockets.common import Truth, keep

_VMADDR_CID_LOCAL = 1


def vsock(amount: int) -> Truth:
    """`amount` unread bytes, if the kernel can connect two vsock sockets of the machine."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen(1)
    port = listener.getsockname()[1]
    keep(listener)
    if " vsock_loopback_send_pkt" not in Path("/proc/kallsyms").read_text():
        return {"fd": listener.fileno(), "port": port, "unread_bytes": 0}
    sender = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sender.connect((_VMADDR_CID_LOCAL, port))
    receiver, _ = listener.accept()
    sender.sendall(b"v" * amount)
    keep(sender, receiver)
    return {"fd": receiver.fileno(), "port": port, "unread_bytes": amount}
