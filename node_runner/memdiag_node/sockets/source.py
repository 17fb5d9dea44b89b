"""Finding and describing every socket of the node (sockets.bpf.c).

Addresses of kernel structs are keys inside the runner and are never published.
"""

import errno
import mmap
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, block_layout, offsets, optional_offsets
from memdiag_node.kernel.linear_map import linear_to_page, slab_layout
from memdiag_node.kernel.loader import BpfError, BpfObject, ClosedOnExit, IteratorLink
from memdiag_node.kernel.perf_event import open_idle_perf_event

FOUND_DTYPE = np.dtype([("socket", "<u8"), ("pid", "<u4"), ("fd", "<u4"), ("pipe_inode", "<u4"), ("kind", "<u4")])
"""One sighting of a socket, or of what `kind` says; pid is 0 when no fd was seen."""
FOUND_SOCKET, FOUND_PIPE, FOUND_PERF_EVENT, FOUND_BPF_MAP = range(4)

NAME_BYTES = 108
_ADDRESSES = ("socket", "inode", "peer_inode", "vsock_queue", "rx_ring", "tx_ring")
_NUMBERS = (
    *("netns", "receive_packets", "write_packets", "error_packets", "reader_packets", "vsock_packets"),
    *("receive_charge_bytes", "write_queued_bytes", "backlog_bytes"),
    *("copied_seq", "received_seq", "unaccepted"),
    *("rx_ring_blocks", "rx_ring_order", "tx_ring_blocks", "tx_ring_order"),
    *("local_number", "remote_number", "local_cid", "remote_cid"),
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
IS_ORPHANED, HAS_SOCKET, HAS_FILE, HAS_FIN = 1, 2, 4, 8

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
USER_RING_BUFFER_TYPE = 31  # include/uapi/linux/bpf.h, BPF_MAP_TYPE_USER_RINGBUF: since 6.1
TCP_LISTEN = 10  # include/net/tcp_states.h; UNIX and vsock use the same number

_SOURCE = Path(__file__).with_name("sockets.bpf.c")
_BATCH = 32  # descriptions of one run: 140,000 instructions of the million that the verifier follows
DESCRIBED_AT_ONCE = 2_048
"""Sockets that `SocketSource.describe` describes between two pieces of its answer."""
_FINDERS = ("tcp", "udp", "unix", "netlink")
_FACTS = (
    *("socket_file_operations", "linear_to_page", "net_operations"),
    *("current_task", "perf_file_operations", "map_file_operations"),
)
_WORDS = 512
WATCHED = 16_384
"""Sockets that can be watched at once: 1 MiB."""
_WATCHED_DTYPE = np.dtype([("key", "<u8"), ("value", "<u4")])
_READS = "sock_recv_length"

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
    ("SOCK_PROT", "sock", "__sk_common.skc_prot"),
    ("PROTO_SLAB", "proto", "slab"),
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
    ("NET_LIST", "net", "list"),
    ("LISTENER_ACCEPT_HEAD", "inet_connection_sock", "icsk_accept_queue.rskq_accept_head"),
    ("TCP_COPIED_SEQ", "tcp_sock", "copied_seq"),
    ("TCP_RCV_NXT", "tcp_sock", "rcv_nxt"),
    ("TCP_OUT_OF_ORDER", "tcp_sock", "out_of_order_queue"),
    ("UDP_READER_QUEUE", "udp_sock", "reader_queue"),
    ("UNIX_ADDRESS", "unix_sock", "addr"),
    ("UNIX_PEER", "unix_sock", "peer"),
    ("UNIX_CONSUMED", "unix_skb_parms", "consumed"),
    ("UNIX_ADDRESS_LENGTH", "unix_address", "len"),
    ("UNIX_ADDRESS_NAME", "unix_address", "name"),
    ("NETLINK_PORT", "netlink_sock", "portid"),
)
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
# How much of a packet was read already: in its control block.
_MPTCP_CONSUMED: tuple[Field, ...] = (("MPTCP_CONSUMED", "mptcp_skb_cb", "offset"),)
_VSOCK_CONSUMED: tuple[Field, ...] = (
    ("VSOCK_CONSUMED", "virtio_vsock_skb_cb", "offset"),
)  # 6.7: before, it was cut off
_RING_BUFFER: tuple[Field, ...] = (
    ("MAP_TYPE", "bpf_map", "map_type"),
    ("MAP_ID", "bpf_map", "id"),
    ("MAP_RING_BUFFER", "bpf_ringbuf_map", "rb"),
    ("RING_BUFFER_PAGES", "bpf_ringbuf", "pages"),
    ("RING_BUFFER_COUNT", "bpf_ringbuf", "nr_pages"),
)
_PERF_BUFFER: tuple[Field, ...] = (
    ("EVENT_BUFFER", "perf_event", "rb"),
    ("PERF_PAGES", "perf_buffer", "data_pages"),
    ("PERF_COUNT", "perf_buffer", "nr_pages"),
    ("PERF_USER_PAGE", "perf_buffer", "user_page"),
    ("PERF_AUX_PAGES", "perf_buffer", "aux_pages"),
    ("PERF_AUX_COUNT", "perf_buffer", "aux_nr_pages"),
)
_PAGE_POOL: tuple[Field, ...] = (
    ("POOL_TAKEN", "page_pool", "pages_state_hold_cnt"),
    ("POOL_GIVEN_BACK", "page_pool", "pages_state_release_cnt"),
    ("POOL_ORDER", "page_pool", "p.order"),
)
_DEVICES: tuple[Field, ...] = (
    ("NET_DEVICES", "net", "dev_base_head"),
    ("DEVICE_ENTRY", "net_device", "dev_list"),
    ("DEVICE_NAME", "net_device", "name"),
    ("DEVICE_INDEX", "net_device", "ifindex"),
    ("DEVICE_NET", "net_device", "nd_net"),
    ("DEVICE_OBJECT", "net_device", "dev"),
    ("POOL_OBJECT", "page_pool", "p.dev"),
)
_DEVICE_POOLS: tuple[Field, ...] = (  # 6.7, 083772c9f972
    ("DEVICE_POOLS", "net_device", "page_pools"),
    ("POOL_ENTRY", "page_pool", "user.list"),
    ("POOL_ID", "page_pool", "user.id"),
    ("POOL_DETACH_TIME", "page_pool", "user.detach_time"),
    ("POOL_DEVICE", "page_pool", "slow.netdev"),
)
_PAGE_SIGNATURE: tuple[Field, ...] = (("PAGE_POOL_MAGIC", "page", "pp_magic"),)
_POOL_PROVIDER: tuple[Field, ...] = (("POOL_PROVIDER", "page_pool", "mp_priv"),)  # 6.11: memory of devices or processes
_OWN_NET: tuple[Field, ...] = (("TASK_NAMESPACES", "task_struct", "nsproxy"), ("NAMESPACES_NET", "nsproxy", "net_ns"))
_FILE_TABLE: tuple[Field, ...] = (
    ("TASK_FILES", "task_struct", "files"),
    ("FILES_TABLE", "files_struct", "fdt"),
    ("TABLE_FILES", "fdtable", "fd"),
)


def socket_defines(btf: Btf) -> dict[str, int]:
    """What sockets.bpf.c must know of the running kernel. Raises BtfError naming what it lacks."""
    defines = _ABI | block_layout(btf) | offsets(btf, _FIELDS)
    for switch, fields in (
        ("HAS_IPV6", _IPV6),
        ("HAS_PACKET", _PACKET),
        ("HAS_VSOCK", _VSOCK),
        ("HAS_VIRTIO_VSOCK", _VIRTIO_VSOCK),
        ("HAS_MPTCP_CONSUMED", _MPTCP_CONSUMED),
        ("HAS_VSOCK_CONSUMED", _VSOCK_CONSUMED),
        ("HAS_RING_BUFFER", _RING_BUFFER),
        ("HAS_PAGE_POOL", (("PAGE_POOL", "page" if btf.has_field("page", "pp") else "netmem_desc", "pp"), *_PAGE_POOL)),
        ("HAS_DEVICES", _DEVICES),
        ("HAS_DEVICE_POOLS", _DEVICE_POOLS),
        ("HAS_PAGE_SIGNATURE", _PAGE_SIGNATURE),
        ("HAS_POOL_PROVIDER", _POOL_PROVIDER),
    ):
        defines |= optional_offsets(btf, switch, fields)
    if "HAS_VIRTIO_VSOCK" in defines:
        defines["VIRTIO_VSOCK_QUEUE"] = btf.offset_bytes("virtio_vsock_sock", "rx_queue")
    if not btf.has_field("perf_buffer", "page_order"):  # else (CONFIG_PERF_USE_VMALLOC) its memory is vmalloc
        defines |= optional_offsets(btf, "HAS_PERF_BUFFER", _PERF_BUFFER)
    if "HAS_RING_BUFFER" in defines:
        defines["RING_BUFFER_TYPE"] = btf.enum_value("BPF_MAP_TYPE_RINGBUF")
        defines["USER_RING_BUFFER_TYPE"] = USER_RING_BUFFER_TYPE
    defines |= offsets(btf, _FILE_TABLE) | offsets(btf, _OWN_NET) | slab_layout(btf)
    defines["SOCKET_INODE"] = (
        btf.offset_bytes("socket_alloc", "vfs_inode")
        - btf.offset_bytes("socket_alloc", "socket")
        + btf.offset_bytes("inode", "i_ino")
    )
    return defines | {
        "UPID_SIZE": btf.size_bytes("upid"),
        "SOCK_DEAD": btf.enum_value("SOCK_DEAD"),
        "SOCK_DONE": btf.enum_value("SOCK_DONE"),
        "PAGE_SHIFT": mmap.PAGESIZE.bit_length() - 1,
        "BATCH": _BATCH,
        "WORDS": _WORDS,
        "WATCHED": WATCHED,
    }


class SocketSource(ClosedOnExit):
    """The finders and the describer, loaded and attached once; use as a context manager or call `close`.

    Raises BpfError when the kernel refuses one that the scan cannot do without.
    """

    def __init__(self, btf: Btf) -> None:
        self.offset = socket_defines(btf)
        self._object = BpfObject(_SOURCE, self.offset)
        try:
            self._held = self._object.attach_iterator("bpf_iter__task_file")
            self._describe = self._object.runnable("describe")
            self._listed: dict[str, IteratorLink] = {}
            self.missing_finders: list[str] = []
            for kind in _FINDERS:
                self._attach_finder(kind)
            self._ring_buffers: IteratorLink | None = None
            if "HAS_RING_BUFFER" in self.offset:
                self._ring_buffers = self._object.attach_iterator("bpf_iter__bpf_map")
            self._peek = self._object.runnable("peek")
            self._words = np.frombuffer(self._object.mmap("words", 8 * _WORDS), "<u8", _WORDS)
            self._subjects = np.frombuffer(self._object.mmap("subjects", 8 * _BATCH), "<u8", _BATCH)
            descriptions = self._object.mmap("descriptions", DESCRIPTION_DTYPE.itemsize * _BATCH)
            self._descriptions = np.frombuffer(descriptions, DESCRIPTION_DTYPE, _BATCH)
            self._facts = np.frombuffer(self._object.mmap("facts", 8 * len(_FACTS)), "<u8", len(_FACTS))
            self.own_net = self._learn_net_operations()
            self.sees_perf_events = self._learn_file_operations()
            if "HAS_SLAB" in self.offset:
                self._facts[_FACTS.index("linear_to_page")] = linear_to_page(self, self.offset, cache=self._any_cache())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Detach and free everything. Idempotent."""
        # A numpy view keeps its mapping from being closed.
        self._subjects = self._facts = self._words = np.empty(0, "<u8")
        self._descriptions = np.empty(0, DESCRIPTION_DTYPE)
        self._object.close()

    def _attach_finder(self, kind: str) -> None:
        try:
            self._listed[kind] = self._object.attach_iterator(f"bpf_iter__{kind}")
        except BpfError as error:  # a kernel without that protocol, or from before its iterator (unix: 5.15)
            if error.errno in (errno.EPERM, errno.EACCES):
                raise
            self.missing_finders.append(kind)

    def _learn_net_operations(self) -> int:
        """Tell the describer by this process's network namespace what all have alike; gives its address."""
        self.peek([1])  # whatever stands there: the run says which task this is
        namespaces = int(self.peek([self.fact("current_task") + self.offset["TASK_NAMESPACES"]])[0])
        net = int(self.peek([namespaces + self.offset["NAMESPACES_NET"]])[0])
        self._facts[_FACTS.index("net_operations")] = self.peek([net + self.offset["NET_OPERATIONS"]])[0]
        return net

    def _learn_file_operations(self) -> bool:
        """Tell the iterator what files of perf events and BPF maps look like, by one of each that this process has.

        False when it may not open a perf event.
        """
        self._learn("map_file_operations", self._object.map_fd("facts"))
        try:
            event_fd = open_idle_perf_event()
        except OSError:
            return False
        try:
            self._learn("perf_file_operations", event_fd)
        finally:
            os.close(event_fd)
        return True

    def _learn(self, fact: str, fd: int) -> None:
        self._facts[_FACTS.index(fact)] = self._follow(fd, "FILE_OPERATIONS")

    def _any_cache(self) -> int:
        """A kmem_cache: that of this process's own UNIX socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
            return self._follow(own.fileno(), "FILE_PRIVATE", "SOCKET_SK", "SOCK_PROT", "PROTO_SLAB")

    def _follow(self, fd: int, *fields: str) -> int:
        """Where pointers lead from the struct file of one of this process's fds, by names of offsets."""
        self.peek([1])  # whatever stands there: the run says which task this is
        at = self.fact("current_task") + self.offset["TASK_FILES"]
        steps = (self.offset["FILES_TABLE"], self.offset["TABLE_FILES"], 8 * fd)
        for step in (*steps, *(self.offset[name] for name in fields)):
            at = int(self.peek([at])[0]) + step
        return int(self.peek([at])[0])

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        """The 8 bytes at each address of kernel memory; 0 where they cannot be read."""
        wanted = np.asarray(addresses, "<u8")
        values = np.zeros(len(wanted), "<u8")
        for start in range(0, len(wanted), _WORDS):
            piece = np.maximum(wanted[start : start + _WORDS], 1)  # 0 would end the batch; 1 cannot be read either
            self._words[: len(piece)] = piece
            self._words[len(piece) :] = 0
            self._peek.run()
            values[start : start + len(piece)] = self._words[: len(piece)]
        return values

    def held(self) -> Iterator[npt.NDArray[np.void]]:
        """Every fd of every process that is a socket, a pipe, a perf event or a BPF map, as FOUND_DTYPE, in pieces.

        The kernel goes from process to process, by pid.
        """
        for piece in self._held.chunks():
            yield np.frombuffer(piece, FOUND_DTYPE)

    def ring_buffer_maps(self) -> npt.NDArray[np.uint64]:
        """Addresses of the BPF maps that are ring buffers, with or without an fd."""
        read = self._ring_buffers.read() if self._ring_buffers else b""
        return np.frombuffer(read, FOUND_DTYPE)["socket"].astype("<u8")

    def listed(self) -> Iterator[npt.NDArray[np.uint64]]:
        """Addresses of the sockets of the caller's own network namespace, held or not, in pieces."""
        for link in self._listed.values():
            for piece in link.chunks():
                yield np.frombuffer(piece, FOUND_DTYPE)["socket"]

    def describe(self, sockets: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.void]]:
        """Descriptions (DESCRIPTION_DTYPE) of these sockets, in pieces; none of what is no full socket."""
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

    def watch(self, sockets: npt.NDArray[np.uint64]) -> bool:
        """Note from now on which of these sockets, at most WATCHED, are read from.

        False where the kernel does not tell, before Linux 6.3.
        """
        self._object.update("watched", sockets, np.zeros(len(sockets), "<u4"))
        try:
            self._object.attach_raw_tracepoint(_READS, "note_read")
        except BpfError as error:
            self.unwatch()
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def unwatch(self) -> npt.NDArray[np.uint64]:
        """Which sockets were read from since they are watched; no longer watch any."""
        self._object.detach_raw_tracepoint(_READS)
        watched = self._object.read_map("watched", _WATCHED_DTYPE)
        self._object.delete_keys("watched", watched["key"])
        read: npt.NDArray[np.uint64] = watched["key"][watched["value"] != 0]
        return read

    def fact(self, name: str) -> int:
        """Something learned about this kernel; 0 when it is not known."""
        return int(self._facts[_FACTS.index(name)])
