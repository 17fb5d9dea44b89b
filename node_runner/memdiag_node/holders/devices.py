"""Names of network devices, with their network namespace."""

from collections.abc import Mapping

from memdiag_node.holders.fields import text
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import WordReader

_NAME_BYTES = 16  # include/uapi/linux/if.h, IFNAMSIZ
_NAMES: tuple[Field, ...] = (
    ("DEVICE_NAME", "net_device", "name"),
    ("DEVICE_INDEX", "net_device", "ifindex"),
    ("DEVICE_NET", "net_device", "nd_net"),
    ("NET_INODE", "net", "ns.inum"),
)


def device_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `describe_device` needs, with HAS_DEVICE_NAMES."""
    return optional_offsets(btf, "HAS_DEVICE_NAMES", _NAMES)


def describe_device(memory: WordReader, at: Mapping[str, int], device: int) -> str:
    """Name, number and network namespace of a struct net_device. `at` has what `device_fields` returned."""
    index, net = map(int, memory.peek([device + at["DEVICE_INDEX"], device + at["DEVICE_NET"]]))
    namespace = int(memory.peek([net + at["NET_INODE"]])[0]) & 0xFFFFFFFF
    name = text(memory, device + at["DEVICE_NAME"], _NAME_BYTES)
    return f"{name}, interface {index & 0xFFFFFFFF} in network namespace {namespace}"
