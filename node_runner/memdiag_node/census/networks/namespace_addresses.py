"""Every network namespace of the node, from the slab cache of struct net and from the kernel's list of them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.kernel.lists import list_entries
from memdiag_node.kernel.memory import Fact
from memdiag_node.slab.census import SlabCensus

_CACHE_NAME = "net_namespace"
_FIELDS: tuple[Field, ...] = (
    ("NET_LIST", "net", "list"),
    ("NET_OPERATIONS", "net", "ns.ops"),
    ("NET_PASSIVE", "net", "passive"),
)


def network_fields(btf: Btf) -> dict[str, int]:
    """The offsets that `network_namespaces` needs; empty if this kernel lacks one of them."""
    return optional_offsets(btf, "HAS_NETWORKS", _FIELDS)


def network_namespaces(census: SlabCensus, at: Mapping[str, int]) -> npt.NDArray[np.uint64]:
    """Addresses of every struct net whose memory is not freed, ascending; `at` is the result of `network_fields`.

    Those that are being removed are in their slab cache only, and the initial one, a variable of the kernel, is in the
    list only. In a sample of slabs, some that are being removed may be missing.
    """
    listed = list_entries(census.memory, np.array([census.memory.own_net + at["NET_LIST"]], "<u8"))
    listed = np.append(listed - np.uint64(at["NET_LIST"]), np.uint64(census.memory.own_net))
    found = [listed]
    for cache in _caches(census, listed):
        objects = census.objects(cache)
        found.append(objects[census.still_allocated(cache, objects)])
    networks = np.unique(np.concatenate(found))
    operations = census.read(networks, at["NET_OPERATIONS"])
    references = census.read(networks, at["NET_PASSIVE"], 4)
    is_network = (operations == np.uint64(census.memory.fact(Fact.NET_OPERATIONS))) & (references != 0)
    result: npt.NDArray[np.uint64] = networks[is_network]  # without the head of the list, and what a merged cache has
    return result


def _caches(census: SlabCensus, listed: npt.NDArray[np.uint64]) -> list[int]:
    """The numbers of the caches of struct net: under its own name, or under another one with which it is merged."""
    _, slabs = census.find(listed)
    merged = census.slabs.table["cache"][slabs[slabs >= 0]].tolist()
    return sorted({*census.named(_CACHE_NAME), *merged})
