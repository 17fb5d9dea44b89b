"""The packets of the node in the document: where they wait, and what they keep."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import ShortText
from memdiag_api.record import ByteCount, Count, Record, Share


class PacketPlace(StrEnum):
    """PacketPlace is where packets are.

    SocketQueues: queues of sockets, by protocol. Qdisc: the queue of a device for sending. Tun: the ring of a tun or
    tap device, until its process reads it. NeighbourQueue: until the address of a neighbour is known. Reassembly: IP
    fragments whose rest has not arrived. NetfilterQueue: until a program gives its verdict. KernelList: a list of the
    kernel or of a module, such as a CPU's backlog. ObjectList: a list in a kernel object of an unknown type.
    Sockmap: taken out of a socket's receive queue by a socket map. Ktls: in the kernel's TLS of a socket, decrypted and
    not read. Sctp: of an SCTP association, in none of its socket's queues. DriverRing: on no list, with a hardware
    device. OtherChain: linked with each other, in no known queue. Referred: on
    no list, but a kernel object refers to them. Unlinked: in no queue. Lost: the same packets were in no queue in two
    readings.
    """

    SOCKET_QUEUES = "SocketQueues"
    QDISC = "Qdisc"
    TUN = "Tun"
    NEIGHBOUR_QUEUE = "NeighbourQueue"
    REASSEMBLY = "Reassembly"
    NETFILTER_QUEUE = "NetfilterQueue"
    SOCKMAP = "Sockmap"
    KTLS = "Ktls"
    SCTP = "Sctp"
    KERNEL_LIST = "KernelList"
    OBJECT_LIST = "ObjectList"
    DRIVER_RING = "DriverRing"
    OTHER_CHAIN = "OtherChain"
    REFERRED = "Referred"
    UNLINKED = "Unlinked"
    LOST = "Lost"


class WaitingPackets(Record):
    """WaitingPackets counts packets in one place, of one device, destructor and kind of socket."""

    place: PacketPlace
    packets: Count = Field(description="Number of packets.")
    charge_bytes: ByteCount = Field(description="Memory that the kernel accounts for them (truesize), in bytes.")
    head_bytes: ByteCount = Field(default=0, description="Bytes of slab objects that hold the start of their data.")
    pinned_bytes: ByteCount = Field(
        default=0, description="Bytes of the blocks of pages that they keep. Not counted for SocketQueues."
    )
    pinned_blocks: Count = Field(default=0, description="Number of these blocks.")
    user_bytes: ByteCount = Field(
        default=0, description="Bytes of pages of processes or of the page cache that they refer to."
    )
    device: ShortText = Field(default="", description="Name of the network device. Empty if none is known.")
    device_kind: ShortText = Field(default="", description="Kind of the device, as ip link shows it: tun, veth.")
    interface_index: Count = Field(default=0, description="Interface index of the device. 0 if none is known.")
    network_namespace: Count = Field(default=0, description="Inode of the network namespace. 0 if not known.")
    destructor: ShortText = Field(default="", description="Kernel function that runs when such a packet is freed.")
    socket_kind: ShortText = Field(
        default="", description="Protocol of the sockets that are charged, as the kernel names it: UDP, UNIX-STREAM."
    )
    oldest_seconds: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Age of the oldest time stamp. Null if there is none."
    )
    unchanged_seconds: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Time between two readings that both found the same packets in no queue, or in which a socket of "
        "Sockmap, Ktls or Sctp kept all that it had. Null for other packets.",
    )
    referred_by: ShortText = Field(
        default="",
        description="Slab cache of the objects that refer to them, and the offset there: kmalloc-256+16.",
    )


class PacketCensus(Record):
    """PacketCensus counts all network packets of the node (struct sk_buff), wherever they wait."""

    packets: Count = Field(description="Number of all packets.")
    charge_bytes: ByteCount = Field(description="Memory that the kernel accounts for all packets, in bytes.")
    groups: Annotated[list[WaitingPackets], Field(max_length=limits.MAX_PACKET_GROUPS)] = Field(
        default_factory=list, description="Packets by place, largest charge first. Small groups are summed by place."
    )
    blocks_left_out: Count = Field(default=0, description="Blocks of pages beyond the limit, missing in pinned bytes.")
    sampled_share: Share = Field(
        default=1, description="Share of the node's memory that was read. Less than 1 for a random sample."
    )
    read_seconds: float = Field(default=0, ge=0, allow_inf_nan=False, description="Duration of the reading in seconds.")
