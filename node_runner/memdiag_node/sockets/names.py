"""Families, protocols, states and addresses of sockets in readable form (pure)."""

import ipaddress
import socket

import numpy as np

from memdiag_node.kernel.tcp_states import TCP_STATES

_FAMILIES: dict[int, str] = {
    socket.AF_UNIX: "UNIX",
    socket.AF_INET: "IPv4",
    socket.AF_INET6: "IPv6",
    socket.AF_NETLINK: "netlink",
    socket.AF_PACKET: "packet",
    socket.AF_VSOCK: "vsock",
    socket.AF_ALG: "crypto",
    socket.AF_TIPC: "TIPC",
    socket.AF_CAN: "CAN",
    44: "XDP",  # AF_XDP, which Python 3.11 lacks
}
_INET_PROTOCOLS: dict[int, str] = {
    socket.IPPROTO_ICMP: "ICMP",
    socket.IPPROTO_TCP: "TCP",
    socket.IPPROTO_UDP: "UDP",
    socket.IPPROTO_SCTP: "SCTP",
    socket.IPPROTO_UDPLITE: "UDP-Lite",
    socket.IPPROTO_ICMPV6: "ICMPv6",
    socket.IPPROTO_RAW: "raw",
    262: "MPTCP",  # IPPROTO_MPTCP
}
_TYPES: dict[int, str] = {
    socket.SOCK_STREAM: "stream",
    socket.SOCK_DGRAM: "datagram",
    socket.SOCK_RAW: "raw",
    socket.SOCK_SEQPACKET: "sequential packets",
}
_NETLINK_PROTOCOLS = {
    0: "route",
    4: "sock_diag",
    5: "nflog",
    6: "xfrm",
    7: "selinux",
    9: "audit",
    10: "fib lookup",
    11: "connector",
    12: "netfilter",
    15: "uevent",
    16: "generic",
}
LISTEN = 10
_CONNECTED = 1
_INET = (socket.AF_INET, socket.AF_INET6)


def family_name(family: int) -> str:
    """ "IPv4", "UNIX", ...; "family 99" for a family without a name here."""
    return _FAMILIES.get(family, f"family {family}")


def protocol_name(family: int, protocol: int, kind: int) -> str:
    """The protocol, or the type if a family has none: "TCP", "stream", "generic" (netlink), "0x0800"."""
    if family in _INET:
        name = _INET_PROTOCOLS.get(protocol, f"protocol {protocol}")
        return f"raw {name}" if kind == socket.SOCK_RAW and name != "raw" else name
    if family == socket.AF_NETLINK:
        return _NETLINK_PROTOCOLS.get(protocol, f"protocol {protocol}")
    if family == socket.AF_PACKET:
        return f"{protocol:#06x}"
    return _TYPES.get(kind, f"type {kind}")


def state_name(family: int, kind: int, state: int) -> str:
    """The state of a connection as ss shows it; for a socket without connections only whether it has a peer."""
    if kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        return TCP_STATES.get(state, f"state {state}")
    return "CONNECTED" if state == _CONNECTED else "UNCONNECTED"


def addresses(row: np.void, names: tuple[bytes, bytes]) -> tuple[str, str]:
    """Local and remote address in readable form; empty if a socket has none."""
    family = int(row["family"])
    local, remote = int(row["local_number"]), int(row["remote_number"])
    if family in _INET:
        remote_address = row["remote_address"].tobytes()
        connected = any(remote_address) or remote
        if int(row["type"]) == socket.SOCK_RAW:  # its number is a protocol, not a port
            local = remote = 0
        return (
            inet_address(family, row["local_address"].tobytes(), local),
            inet_address(family, remote_address, remote) if connected else "",
        )
    if family == socket.AF_UNIX:
        return unix_address(names[0], int(row["inode"])), unix_address(names[1], int(row["peer_inode"]))
    if family == socket.AF_NETLINK:
        return f"port {local}", ""
    if family == socket.AF_PACKET:
        return f"interface {local}" if local else "every interface", ""
    if family == socket.AF_VSOCK:
        return f"cid {int(row['local_cid'])}:{local}", f"cid {int(row['remote_cid'])}:{remote}"
    return "", ""


def inet_address(family: int, address: bytes, port: int) -> str:
    """ "192.0.2.1:80" or "[2001:db8::1]:80"; an IPv4-mapped address is shown as IPv4, any address and port as "*"."""
    port_text = str(port) if port else "*"
    if family == socket.AF_INET:
        return f"{ipaddress.IPv4Address(address[:4])}:{port_text}"
    ipv6 = ipaddress.IPv6Address(address[:16])
    if ipv6.ipv4_mapped is not None:
        return f"{ipv6.ipv4_mapped}:{port_text}"
    return f"[{ipv6}]:{port_text}"


def unix_address(name: bytes, inode: int = 0) -> str:
    """The path, "@name" for an abstract one, else the inode that identifies an unnamed socket."""
    if name.startswith(b"\0"):
        return _printable(b"@" + name[1:])
    if name.rstrip(b"\0"):
        return _printable(name.split(b"\0", 1)[0])
    return f"inode {inode}" if inode else ""


def _printable(name: bytes) -> str:
    """The process that bound the socket chose these bytes: only plain printable text is kept."""
    return "".join(c if c.isprintable() else "?" for c in name.decode("utf-8", "replace"))
