"""Network namespaces, their devices, and what proves that an object is a socket."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks.namespace_addresses import network_fields as namespace_fields
from memdiag_node.census.networks.namespace_addresses import network_namespaces
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.procfs.text import printable
from memdiag_node.slab.census import SlabCensus

NAME_BYTES = 16  # include/uapi/linux/if.h, IFNAMSIZ
PROTOCOL_BYTES = 32  # include/net/sock.h, struct proto
_U32 = np.uint64(0xFFFFFFFF)
_MAX_INDEX = 1 << 31
_PRINTABLE = range(0x21, 0x7F)

_NETWORKS: tuple[Field, ...] = (
    ("NET_LIST", "net", "list"),
    ("NET_INODE", "net", "ns.inum"),
    ("NET_OPERATIONS", "net", "ns.ops"),
    ("NET_DEVICES", "net", "dev_base_head"),
    ("DEVICE_ENTRY", "net_device", "dev_list"),
    ("DEVICE_NAME", "net_device", "name"),
    ("DEVICE_INDEX", "net_device", "ifindex"),
    ("DEVICE_NET", "net_device", "nd_net"),
    ("DEVICE_PARENT", "net_device", "dev.parent"),
    ("SOCK_PROT", "sock", "__sk_common.skc_prot"),
    ("SOCK_NET", "sock", "__sk_common.skc_net"),
    ("PROTO_SLAB", "proto", "slab"),
    ("PROTO_NAME", "proto", "name"),
    ("PROTO_NODE", "proto", "node"),
)
_KINDS: tuple[Field, ...] = (
    ("DEVICE_LINK", "net_device", "rtnl_link_ops"),
    ("LINK_KIND", "rtnl_link_ops", "kind"),
)


def network_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_networks` needs; without HAS_PACKET_NETWORKS if this kernel lacks one of them."""
    namespaces = namespace_fields(btf)
    found = optional_offsets(btf, "HAS_PACKET_NETWORKS", _NETWORKS) if namespaces else {}
    return namespaces | found | optional_offsets(btf, "HAS_DEVICE_KINDS", _KINDS)


@dataclass(frozen=True, slots=True)
class Networks:
    """Everything that a pointer to a network object is checked against. Addresses ascend."""

    nets: npt.NDArray[np.uint64]
    """Every network namespace, also those that only their sockets keep."""
    inodes: npt.NDArray[np.uint64]
    """The inode of each."""
    devices: npt.NDArray[np.uint64]
    device_nets: npt.NDArray[np.uint64]
    device_indexes: npt.NDArray[np.uint64]
    device_names: list[str]
    device_kinds: list[str]
    """As `ip link` names them: "tun" (also for tap), "veth"; empty for hardware, and if the kernel does not say."""
    is_hardware: npt.NDArray[np.bool_]
    """Whether the device has a parent device, and so a driver with rings of its own."""
    protocols: npt.NDArray[np.uint64]
    """Every registered struct proto."""
    protocol_caches: npt.NDArray[np.uint64]
    """The slab cache of the sockets of each; 0 for kmalloc."""

    def device_numbers(self, addresses: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """The index of each device in `devices`, -1 for what is not a device."""
        return index_of(addresses, self.devices)

    def devices_by_index(self, nets: npt.NDArray[np.uint64], indexes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The device with each interface index in a network namespace, 0 for none."""
        found = np.zeros(len(nets), "<u8")
        if len(self.devices):
            keys = self._interface_keys(self.device_nets, self.device_indexes)
            order = np.argsort(keys)
            numbers = index_of(self._interface_keys(nets, indexes), keys[order])
            found[numbers >= 0] = self.devices[order][numbers[numbers >= 0]]
        return found

    def _interface_keys(self, nets: npt.NDArray[np.uint64], indexes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        numbers = index_of(nets, self.nets).astype("<u8")
        return np.asarray(numbers << np.uint64(32) | indexes, "<u8")

    def inode_of(self, nets: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """The inode of each network namespace, 0 for what is not one."""
        numbers = index_of(nets, self.nets)
        found = np.zeros(len(nets), "<u8")
        found[numbers >= 0] = self.inodes[numbers[numbers >= 0]]
        return found


def index_of(wanted: npt.NDArray[np.uint64], ascending: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The index of each value in an ascending array, -1 where it is missing."""
    if not len(ascending):
        return np.full(len(wanted), -1, np.int64)
    numbers = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[numbers] == wanted, numbers, -1)


def read_networks(census: SlabCensus, at: Mapping[str, int]) -> Networks:
    """Read all network namespaces, devices and protocols. `at` is the result of `network_fields`."""
    memory = census.memory
    nets = network_namespaces(census, at)
    devices = list_entries(memory, nets + np.uint64(at["NET_DEVICES"])) - np.uint64(at["DEVICE_ENTRY"])
    devices = devices[_are_devices(memory, at, devices, nets)]
    protocols = _protocols(memory, at, census.at)
    return Networks(
        nets=nets,
        inodes=memory.peek(nets + np.uint64(at["NET_INODE"])) & _U32,
        devices=devices,
        device_nets=memory.peek(devices + np.uint64(at["DEVICE_NET"])),
        device_indexes=memory.peek(devices + np.uint64(at["DEVICE_INDEX"])) & _U32,
        device_names=_texts(memory, devices + np.uint64(at["DEVICE_NAME"]), NAME_BYTES),
        device_kinds=_device_kinds(memory, at, devices),
        is_hardware=memory.peek(devices + np.uint64(at["DEVICE_PARENT"])) != 0,
        protocols=protocols,
        protocol_caches=memory.peek(protocols + np.uint64(at["PROTO_SLAB"])),
    )


def are_sockets(
    census: SlabCensus, at: Mapping[str, int], networks: Networks, objects: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    """Whether each object (its first byte) is a struct sock.

    Its namespace must be one, and its protocol must say that its sockets are in the cache that the object is in.
    """
    memory = census.memory
    starts, slabs = census.find(objects)
    nets = memory.peek(objects + np.uint64(at["SOCK_NET"]))
    protocols = memory.peek(objects + np.uint64(at["SOCK_PROT"]))
    cache_of = memory.peek(np.where(protocols != 0, protocols + np.uint64(at["PROTO_SLAB"]), 0))
    caches = np.array([cache.address for cache in census.caches], "<u8")
    is_kmalloc = np.array(["kmalloc" in cache.name for cache in census.caches], np.bool_)
    rows = census.slabs.table["cache"][slabs] if len(census.slabs.table) else np.zeros(len(objects), np.int32)
    in_its_cache = np.where(cache_of != 0, cache_of == caches[rows], is_kmalloc[rows])
    in_network = index_of(nets, networks.nets) >= 0
    return np.asarray((slabs >= 0) & (starts == objects) & in_network & (protocols != 0) & in_its_cache, np.bool_)


def protocol_names(
    memory: KernelMemory, at: Mapping[str, int], sockets: npt.NDArray[np.uint64]
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of the protocols of these sockets ("TCP", "UNIX-STREAM"), and the index of each socket's name."""
    protocols, numbers = np.unique(memory.peek(sockets + np.uint64(at["SOCK_PROT"])), return_inverse=True)
    return _texts(memory, protocols + np.uint64(at["PROTO_NAME"]), PROTOCOL_BYTES), numbers.astype(np.int64)


def _are_devices(
    memory: KernelMemory, at: Mapping[str, int], candidates: npt.NDArray[np.uint64], nets: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    indexes = memory.peek(candidates + np.uint64(at["DEVICE_INDEX"])) & _U32
    first = memory.peek(candidates + np.uint64(at["DEVICE_NAME"])) & np.uint64(0xFF)
    is_named = (first >= _PRINTABLE.start) & (first < _PRINTABLE.stop)
    in_net = index_of(memory.peek(candidates + np.uint64(at["DEVICE_NET"])), nets) >= 0
    return np.asarray(in_net & is_named & (indexes > 0) & (indexes < _MAX_INDEX), np.bool_)


def _device_kinds(memory: KernelMemory, at: Mapping[str, int], devices: npt.NDArray[np.uint64]) -> list[str]:
    if "HAS_DEVICE_KINDS" not in at:
        return [""] * len(devices)
    operations = memory.peek(devices + np.uint64(at["DEVICE_LINK"]))
    names = memory.peek(np.where(operations != 0, operations + np.uint64(at["LINK_KIND"]), 0))
    return _texts(memory, names, NAME_BYTES)


def _protocols(memory: KernelMemory, at: Mapping[str, int], engine: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """All are on one list, which the protocol of a socket of this process leads to."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as own:
        private = memory.word(memory.file(own.fileno()) + engine["FILE_PRIVATE"])
        protocol = memory.word(memory.word(private + engine["SOCKET_SK"]) + at["SOCK_PROT"])
    nodes = list_entries(memory, np.array([protocol + at["PROTO_NODE"]], "<u8"))
    return np.union1d(nodes - np.uint64(at["PROTO_NODE"]), np.array([protocol], "<u8"))


def _texts(memory: KernelMemory, addresses: npt.NDArray[np.uint64], max_bytes: int) -> list[str]:
    return [printable(text, max_bytes) for text in memory.texts(addresses, max_bytes)]
