"""Finding and describing every socket of the node (sockets.bpf.c).

Addresses of kernel structs are keys inside the runner and are never published.
"""

import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.errors import BpfError
from memdiag_node.kernel.idle_files import open_idle_io_uring, open_idle_perf_event
from memdiag_node.kernel.layout import Field, offsets, optional_offsets
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import MEMORY_DEFINES, MEMORY_MAPS, Fact, KernelMemory, memory_layout
from memdiag_node.kernel.programs import IteratorLink
from memdiag_node.kernel.symbols import SymbolReader
from memdiag_node.resource import Resource
from memdiag_node.sockets.file_kinds import FileKind, FileKinds

FOUND_DTYPE = np.dtype([("socket", "<u8"), ("pid", "<u4"), ("fd", "<u4"), ("pipe_inode", "<u4"), ("kind", "<u4")])
"""One sighting of a socket, or of another object of `kind` (FileKind); pid is 0 if no fd was seen."""

NAME_BYTES = 108  # include/uapi/linux/un.h, UNIX_PATH_MAX
_ADDRESSES = ("socket", "inode", "peer_inode", "vsock_queue", "rx_ring", "tx_ring", "bytes_received", "bytes_acked")
_NUMBERS = (
    *("netns", "receive_packets", "write_packets", "error_packets", "reader_packets", "vsock_packets"),
    *("receive_charge_bytes", "write_queued_bytes", "backlog_bytes"),
    *("copied_seq", "received_seq", "unaccepted"),
    *("rx_ring_blocks", "rx_ring_order", "tx_ring_blocks", "tx_ring_order"),
    *("local_number", "remote_number", "local_cid", "remote_cid"),
    *("data_age_jiffies", "delivered_age_ms"),
)
DESCRIPTION_DTYPE = np.dtype(
    [
        *[(name, "<u8") for name in _ADDRESSES],
        *[(name, "<u4") for name in _NUMBERS],
        *[(name, "<u2") for name in ("family", "protocol", "type")],
        *[(name, "u1") for name in ("state", "flags", "present", "local_name_bytes", "remote_name_bytes")],
        ("unused", "u1", 5),
        *[(name, "u1", 16) for name in ("local_address", "remote_address")],
        *[(name, "u1", NAME_BYTES) for name in ("local_name", "remote_name")],
    ]
)
"""struct description of sockets.bpf.c."""

PRESENT_OUT_OF_ORDER, PRESENT_RETRANSMIT, PRESENT_BACKLOG, PRESENT_ACCEPT = 1, 2, 4, 8
"""Bits of `present`: the queues without a length field that are not empty."""
IS_ORPHANED, HAS_SOCKET, HAS_FILE, HAS_FIN, IS_WINDOW_CLOSED, COUNTS_READS, COUNTS_SENDS = 1, 2, 4, 8, 16, 32, 64
"""Bits of `flags`. IS_ORPHANED: closed by its process, still needed by the protocol (SOCK_DEAD). HAS_SOCKET: it belongs
to a struct socket, HAS_FILE: and that to a file. HAS_FIN: the peer's FIN is among the received sequence numbers
(SOCK_DONE). IS_WINDOW_CLOSED: the peer of a TCP connection accepts nothing more. COUNTS_READS,
COUNTS_SENDS: data waits to be read or sent, and its counters and times could be read."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_VSOCK = (
    socket.AF_UNIX,
    socket.AF_INET,
    socket.AF_INET6,
    socket.AF_NETLINK,
    socket.AF_PACKET,
    socket.AF_VSOCK,
)
SOCK_STREAM, SOCK_DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
IPPROTO_TCP, IPPROTO_MPTCP = socket.IPPROTO_TCP, 262  # Python 3.11 has no name for it
UDP_PROTOCOLS = (socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE)
TCP_LISTEN = 10  # include/net/tcp_states.h; UNIX and vsock use the same number

_SOURCE = Path(__file__).with_name("sockets.bpf.c")
_BATCH = 32  # descriptions per run: 32,000 of the million instructions that the verifier follows
DESCRIBED_AT_ONCE = 2_048
"""The number of sockets in each piece that `SocketSource.describe` yields."""
_FINDERS = ("tcp", "udp", "unix", "netlink")
WATCHED = 16_384
"""Sockets that can be watched at once: 1.3 MiB."""
READS_DTYPE = np.dtype([("socket", "<u8"), ("calls", "<u8"), ("bytes", "<u8")])
"""The calls that read from a watched socket, and what they read."""
_WATCHED_DTYPE = np.dtype([("key", "<u8"), ("value", [("calls", "<u8"), ("bytes", "<u8")])])
_FILE_KIND_DTYPE = np.dtype([("key", "<u8"), ("value", "<u4")])
_FILE_KINDS = 2_048
"""File operations that can be known: a kernel with all its modules has some hundred with open files."""
_MAPS = MEMORY_MAPS | {
    "subjects": np.dtype("<u8"),
    "descriptions": DESCRIPTION_DTYPE,
    "watched": _WATCHED_DTYPE,
    "file_kinds": _FILE_KIND_DTYPE,
}
_READS = "sock_recv_length"

_NUMBERS_IN_C = {
    "BATCH": _BATCH,
    "WATCHED": WATCHED,
    "NAME_BYTES": NAME_BYTES,
    "FILE_KINDS": _FILE_KINDS,
    "KIND_SOCKET": FileKind.SOCKET,
    "KIND_PIPE": FileKind.PIPE,
    "KIND_BPF_MAP": FileKind.BPF_MAP,
    "KIND_BPF_PROGRAM": FileKind.BPF_PROGRAM,
    "KIND_OTHER": FileKind.OTHER,
    "KIND_UNNAMED": FileKind.UNNAMED,
    "KIND_OPERATIONS": FileKind.OPERATIONS,
    "PRESENT_OUT_OF_ORDER": PRESENT_OUT_OF_ORDER,
    "PRESENT_RETRANSMIT": PRESENT_RETRANSMIT,
    "PRESENT_BACKLOG": PRESENT_BACKLOG,
    "PRESENT_ACCEPT": PRESENT_ACCEPT,
    "IS_ORPHANED": IS_ORPHANED,
    "HAS_SOCKET": HAS_SOCKET,
    "HAS_FILE": HAS_FILE,
    "HAS_FIN": HAS_FIN,
    "IS_WINDOW_CLOSED": IS_WINDOW_CLOSED,
    "COUNTS_READS": COUNTS_READS,
    "COUNTS_SENDS": COUNTS_SENDS,
}
_ABI = {
    "S_IFMT": 0o170000,
    "S_IFIFO": stat.S_IFIFO,
    "AF_UNIX": AF_UNIX,
    "AF_INET": AF_INET,
    "AF_INET6": AF_INET6,
    "AF_NETLINK": AF_NETLINK,
    "AF_PACKET": AF_PACKET,
    "AF_VSOCK": AF_VSOCK,
    "IPPROTO_TCP": IPPROTO_TCP,
    "IPPROTO_UDP": socket.IPPROTO_UDP,
    "IPPROTO_UDPLITE": socket.IPPROTO_UDPLITE,
    "SOCK_STREAM": SOCK_STREAM,
    "SOCK_DGRAM": SOCK_DGRAM,
    "EAGAIN": errno.EAGAIN,
    "MSG_PEEK": socket.MSG_PEEK,
    "TCP_TIME_WAIT": 6,
    "TCP_LISTEN": TCP_LISTEN,
    "TCP_NEW_SYN_RECV": 12,
}

_FIELDS: tuple[Field, ...] = (
    ("SOCKET_SK", "socket", "sk"),
    ("SOCKET_FILE", "socket", "file"),
    ("FILE_OPERATIONS", "file", "f_op"),
    ("FILE_INODE", "file", "f_inode"),
    ("FILE_PRIVATE", "file", "private_data"),
    ("INODE_MODE", "inode", "i_mode"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("TASK_GROUP_LEADER", "task_struct", "group_leader"),
    ("TASK_THREAD_PID", "task_struct", "thread_pid"),
    ("PID_LEVEL", "pid", "level"),
    ("PID_NUMBERS", "pid", "numbers"),
    ("SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("SOCK_STATE", "sock", "__sk_common.skc_state"),
    ("SOCK_FLAGS", "sock", "__sk_common.skc_flags"),
    ("SOCK_REFERENCES", "sock", "__sk_common.skc_refcnt"),
    ("SOCK_NET", "sock", "__sk_common.skc_net"),
    ("SOCK_LOCAL_V4", "sock", "__sk_common.skc_rcv_saddr"),
    ("SOCK_REMOTE_V4", "sock", "__sk_common.skc_daddr"),
    ("SOCK_LOCAL_PORT", "sock", "__sk_common.skc_num"),
    ("SOCK_REMOTE_PORT", "sock", "__sk_common.skc_dport"),
    ("SOCK_PROTOCOL", "sock", "sk_protocol"),
    ("SOCK_TYPE", "sock", "sk_type"),
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCK_RECEIVE_QUEUE", "sock", "sk_receive_queue"),
    ("SOCK_WRITE_QUEUE", "sock", "sk_write_queue"),
    ("SOCK_ERROR_QUEUE", "sock", "sk_error_queue"),
    ("SOCK_RETRANSMIT", "sock", "tcp_rtx_queue"),
    ("SOCK_RECEIVE_CHARGE", "sock", "sk_backlog.rmem_alloc"),
    ("SOCK_BACKLOG_HEAD", "sock", "sk_backlog.head"),
    ("SOCK_BACKLOG_LENGTH", "sock", "sk_backlog.len"),
    ("SOCK_WRITE_QUEUED", "sock", "sk_wmem_queued"),
    ("SOCK_UNACCEPTED", "sock", "sk_ack_backlog"),
    ("QUEUE_LENGTH", "sk_buff_head", "qlen"),
    ("NET_INODE", "net", "ns.inum"),
    ("NET_OPERATIONS", "net", "ns.ops"),
    ("LISTENER_ACCEPT_HEAD", "inet_connection_sock", "icsk_accept_queue.rskq_accept_head"),
    ("TCP_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("TCP_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("TCP_OUT_OF_ORDER", "tcp_sock", "out_of_order_queue"),
    ("UDP_READER_QUEUE", "udp_sock", "reader_queue"),
    ("UNIX_ADDRESS", "unix_sock", "addr"),
    ("UNIX_PEER", "unix_sock", "peer"),
    ("UNIX_ADDRESS_LENGTH", "unix_address", "len"),
    ("UNIX_ADDRESS_NAME", "unix_address", "name"),
    ("NETLINK_PORT", "netlink_sock", "portid"),
)
_RELEASE: tuple[Field, ...] = (("OPERATIONS_RELEASE", "file_operations", "release"),)
_IPV6: tuple[Field, ...] = (
    ("SOCK_LOCAL_V6", "sock", "__sk_common.skc_v6_rcv_saddr"),
    ("SOCK_REMOTE_V6", "sock", "__sk_common.skc_v6_daddr"),
)
_PACKET: tuple[Field, ...] = (
    ("PACKET_INTERFACE", "packet_sock", "ifindex"),
    ("PACKET_PROTOCOL", "packet_sock", "num"),
    ("PACKET_RX_RING", "packet_sock", "rx_ring"),
    ("PACKET_TX_RING", "packet_sock", "tx_ring"),
    ("RING_VECTOR", "packet_ring_buffer", "pg_vec"),
    ("RING_BLOCKS", "packet_ring_buffer", "pg_vec_len"),
    ("RING_ORDER", "packet_ring_buffer", "pg_vec_order"),
)
_TCP_PROGRESS: tuple[Field, ...] = (
    ("TCP_BYTES_RECEIVED", "tcp_sock", "bytes_received"),
    ("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked"),
    ("TCP_SEND_WINDOW", "tcp_sock", "snd_wnd"),
    ("TCP_DELIVERED_TIME", "tcp_sock", "delivered_mstamp"),
    ("TCP_DATA_TIME", "inet_connection_sock", "icsk_ack.lrcvtime"),
)
_VSOCK: tuple[Field, ...] = (
    ("VSOCK_LOCAL", "vsock_sock", "local_addr"),
    ("VSOCK_REMOTE", "vsock_sock", "remote_addr"),
    ("VSOCK_TRANSPORT_STATE", "vsock_sock", "trans"),
    ("SOCKADDR_VM_PORT", "sockaddr_vm", "svm_port"),
    ("SOCKADDR_VM_CID", "sockaddr_vm", "svm_cid"),
)
_VIRTIO_VSOCK: tuple[Field, ...] = (
    ("VIRTIO_VSOCK_OWNER", "virtio_vsock_sock", "vsk"),
    ("VIRTIO_VSOCK_QUEUE", "virtio_vsock_sock", "rx_queue.qlen"),
)
# How much of a packet was already read, in its control block.
_UNIX_CONSUMED: tuple[Field, ...] = (("UNIX_CONSUMED", "unix_skb_parms", "consumed"),)
_MPTCP_CONSUMED: tuple[Field, ...] = (("MPTCP_CONSUMED", "mptcp_skb_cb", "offset"),)
# Since 6.7; before that, the read part was removed from the packet.
_VSOCK_CONSUMED: tuple[Field, ...] = (("VSOCK_CONSUMED", "virtio_vsock_skb_cb", "offset"),)


def socket_defines(btf: Btf) -> dict[str, int]:
    """The defines of sockets.bpf.c for the running kernel. Raises BtfError naming what the kernel lacks."""
    defines = _ABI | _NUMBERS_IN_C | MEMORY_DEFINES | offsets(btf, _FIELDS)
    for switch, fields in (
        ("HAS_IPV6", _IPV6),
        ("HAS_PACKET", _PACKET),
        ("HAS_TCP_PROGRESS", _TCP_PROGRESS),
        ("HAS_VSOCK", _VSOCK),
        ("HAS_VIRTIO_VSOCK", _VIRTIO_VSOCK),
    ):
        defines |= optional_offsets(btf, switch, fields)
    if "HAS_VIRTIO_VSOCK" in defines:
        defines["VIRTIO_VSOCK_QUEUE"] = btf.offset_bytes("virtio_vsock_sock", "rx_queue")
    defines["SOCKET_INODE"] = (
        btf.offset_bytes("socket_alloc", "vfs_inode")
        - btf.offset_bytes("socket_alloc", "socket")
        + btf.offset_bytes("inode", "i_ino")
    )
    return defines | {
        "UPID_SIZE": btf.size_bytes("upid"),
        "SOCK_DEAD": btf.enum_value("SOCK_DEAD"),
        "SOCK_DONE": btf.enum_value("SOCK_DONE"),
    }


def user_layout(btf: Btf) -> dict[str, int]:
    """Offsets that only user space needs.

    Those of the fields in a packet's control block that say how much was read (if a kernel lacks one of the protocols,
    its field is missing), and of the function by which a kind of file is recognized, with HAS_RELEASE.
    """
    fields = (*_MPTCP_CONSUMED, *_VSOCK_CONSUMED)
    consumed = offsets(btf, _UNIX_CONSUMED) | offsets(btf, (one for one in fields if btf.has_field(*one[1:])))
    return consumed | optional_offsets(btf, "HAS_RELEASE", _RELEASE)


class SocketSource(Resource):
    """The finders and the describer, loaded and attached once; use as a context manager or call `close`.

    Raises BpfError if the kernel refuses one that the scan requires.
    """

    def __init__(self, btf: Btf) -> None:
        defines = socket_defines(btf)
        self.offset = defines | user_layout(btf)
        """Offsets of a socket's queues and of a packet's fields, in bytes."""
        with self._opening() as parts:
            self._object = parts.enter_context(BpfObject(_SOURCE, defines, _MAPS))
            self.memory = parts.enter_context(KernelMemory(self._object, memory_layout(btf)))
            self._held = self._object.attach_iterator("bpf_iter__task_file")
            self._describe = self._object.runnable("describe")
            self._listed: dict[str, IteratorLink] = {}
            self.missing_finders: list[str] = []
            for kind in _FINDERS:
                self._attach_finder(kind)
            self._bpf_maps = self._object.attach_iterator("bpf_iter__bpf_map")
            self._bpf_programs = self._object.attach_iterator("bpf_iter__bpf_prog")
            self._subjects = self._object.view("subjects", _MAPS["subjects"], _BATCH)
            self._descriptions = self._object.view("descriptions", DESCRIPTION_DTYPE, _BATCH)
            for view in ("_subjects", "_descriptions"):  # the mapping cannot be closed while a numpy view uses it
                parts.callback(delattr, self, view)
            self._parts_of_names = parts.enter_context(ExitStack())
            self._names: SymbolReader | None = None
            self._kinds = FileKinds(
                release_of=self._release_of, read_names=self._read_names, publish=self._publish_kind
            )
            self._learn_own_files()

    def _attach_finder(self, kind: str) -> None:
        try:
            self._listed[kind] = self._object.attach_iterator(f"bpf_iter__{kind}")
        except BpfError as error:  # a kernel without that protocol, or older than its iterator (unix: 5.15)
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
            self.missing_finders.append(kind)

    def _learn_own_files(self) -> None:
        """Learn the operations of files that this process has or can open. Names tell those of the others."""
        self._learn(FileKind.BPF_MAP, self._object.map_fd("facts"))
        for kind, open_one in ((FileKind.PERF_EVENT, open_idle_perf_event), (FileKind.IO_URING, open_idle_io_uring)):
            try:
                fd = open_one()
            except OSError:  # not allowed to this process, or unknown to this kernel
                continue
            try:
                self._learn(kind, fd)
            finally:
                os.close(fd)

    def _learn(self, kind: FileKind, fd: int) -> None:
        self._kinds.learn(self.memory.word(self.memory.file(fd) + self.offset["FILE_OPERATIONS"]), kind)

    def _release_of(self, operations: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        if "HAS_RELEASE" not in self.offset:
            return np.zeros(len(operations), "<u8")
        return self.memory.peek(operations + np.uint64(self.offset["OPERATIONS_RELEASE"]))

    def _read_names(self, addresses: Sequence[int]) -> Sequence[str]:
        if self._names is None:
            self._names = self._parts_of_names.enter_context(SymbolReader())
        return self._names.lines(addresses)

    def _publish_kind(self, operations: int, kind: FileKind) -> None:
        with suppress(BpfError):  # the table is full: then its files are named here each time
            self._object.update("file_kinds", np.array([operations], "<u8"), np.array([kind], "<u4"))

    def held(self) -> Iterator[npt.NDArray[np.void]]:
        """Every fd of every process that is a socket or a file of a FileKind, as FOUND_DTYPE, in pieces.

        The kernel goes from process to process, by pid.
        """
        for piece in self._held.chunks():
            records = self._kinds.named(np.frombuffer(piece, FOUND_DTYPE))
            if len(records):
                yield records

    def bpf_maps(self) -> npt.NDArray[np.uint64]:
        """Addresses of all BPF maps, with or without an fd."""
        return np.frombuffer(self._bpf_maps.read(), FOUND_DTYPE)["socket"].astype("<u8")

    def bpf_programs(self) -> npt.NDArray[np.uint64]:
        """Addresses of all BPF programs, with or without an fd."""
        return np.frombuffer(self._bpf_programs.read(), FOUND_DTYPE)["socket"].astype("<u8")

    def listed(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Addresses of the sockets of the caller's own network namespace, held or not, in pieces."""
        for link in self._listed.values():
            for piece in link.chunks():
                yield np.frombuffer(piece, FOUND_DTYPE)["socket"]

    def describe(self, sockets: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.void]]:
        """Descriptions (DESCRIPTION_DTYPE) of these sockets, in pieces; skips anything that is not a full socket."""
        for start in range(0, len(sockets), DESCRIBED_AT_ONCE):
            subjects = np.maximum(sockets[start : start + DESCRIBED_AT_ONCE], 1)  # 0 would end a batch
            piece = np.empty(len(subjects), DESCRIPTION_DTYPE)
            for at in range(0, len(piece), _BATCH):
                batch = subjects[at : at + _BATCH]
                self._subjects[: len(batch)] = batch
                self._subjects[len(batch) :] = 0
                self._describe.run()
                piece[at : at + len(batch)] = self._descriptions[: len(batch)]
            yield piece[piece["socket"] == subjects]

    def jiffies(self) -> int:
        """The kernel's clock in jiffies."""
        self._subjects[:] = 0
        self._describe.run()
        return self.memory.fact(Fact.JIFFIES)

    def watch(self, sockets: npt.NDArray[np.uint64]) -> bool:
        """Start to record the reads from these sockets, at most WATCHED.

        False if the kernel has no tracepoint for it, before Linux 6.3.
        """
        self._object.update("watched", sockets, np.zeros(len(sockets), _WATCHED_DTYPE["value"]))
        try:
            self._object.attach_raw_tracepoint(_READS, "note_read")
        except BpfError as error:
            self.unwatch()
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def unwatch(self) -> npt.NDArray[np.void]:
        """The reads from every watched socket since the watch started (READS_DTYPE, by address); stops the watch."""
        self._object.detach_raw_tracepoint(_READS)
        watched = self._object.read_map("watched", _WATCHED_DTYPE)
        self._object.delete_keys("watched", watched["key"])
        reads = np.zeros(len(watched), READS_DTYPE)
        reads["socket"] = watched["key"]
        for column in ("calls", "bytes"):
            reads[column] = watched["value"][column]
        return np.sort(reads, order="socket")
