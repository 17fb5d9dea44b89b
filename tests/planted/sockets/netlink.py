"""Netlink sockets, which receive messages from the kernel."""

import socket

from planted.sockets.common import MIB, SO_RCVBUFFORCE, Truth, drained, keep
from planted.sockets.network import set_loopback_mtu


def netlink_messages(amount: int) -> Truth:
    """A listener to changes of links that does not read, one that does, and `amount` changes of the loopback's MTU."""
    listeners = [socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) for _ in range(2)]
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * MIB)
        listener.bind((0, 1))  # RTMGRP_LINK
    for number in range(amount):
        set_loopback_mtu(60000 + number % 1000)
    keep(*listeners)
    return {"fd": listeners[0].fileno(), **drained(listeners[1])}
