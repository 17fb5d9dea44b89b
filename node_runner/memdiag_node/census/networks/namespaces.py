"""Every network namespace of the node, what keeps it from being removed, and what memory it has.

Processes are found through their tasks, open files and mounts through the dentry that nsfs keeps for a namespace
(ns.stashed), sockets through the census of sockets, and devices through the namespace's own list.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_node.census.networks import sockets
from memdiag_node.census.networks.namespace_addresses import network_namespaces
from memdiag_node.census.networks.namespace_packets import add_packets, packet_fields
from memdiag_node.census.networks.sockets import CensusSockets
from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.layout import Field, optional_offsets
from memdiag_node.slab.census import SlabCensus

NAMESPACE_DTYPE = np.dtype(
    [
        ("network", "<u8"),
        *[(name, "<i8") for name in ("packets", "size_bytes")],
        *[(name, "<u4") for name in ("inode", "references", "passive", "processes", "files", "mounts", "devices")],
        ("first_pid", "<u4"),
        *[(name, "<u4") for name in ("sockets", "open_sockets", "counted_references")],
        *[(name, "u1") for name in ("is_initial", "is_listed_by_nsfs")],
    ]
)
"""One struct net. `references` keep it from being removed, `passive` ones only its memory; `counted_references` are
those whose holder was found. `first_pid` is the lowest ID of its processes, 0 for none. `open_sockets` have a file.
`files` and `mounts` are those of the namespace itself (/proc/PID/ns/net). `size_bytes`: its sockets and what is in
their queues, packets on its devices, its struct."""

_MAX_DEVICES = 1 << 14
_DEVICE_NAME_BYTES = 16  # include/uapi/linux/if.h, IFNAMSIZ
_NAMES_KEPT = 8
_PF_KTHREAD = 0x00200000  # include/linux/sched.h

_FIELDS: tuple[Field, ...] = (
    ("NET_INODE", "net", "ns.inum"),
    ("NET_DEVICES", "net", "dev_base_head"),
    ("DEVICE_LIST", "net_device", "dev_list"),
    ("DEVICE_NET", "net_device", "nd_net"),
    ("DEVICE_NAME", "net_device", "name"),
    ("TASK_LEADER", "task_struct", "group_leader"),
    ("TASK_PID", "task_struct", "tgid"),
    ("TASK_NAMESPACES", "task_struct", "nsproxy"),
    ("TASK_FLAGS", "task_struct", "flags"),
    ("NAMESPACES_NET", "nsproxy", "net_ns"),
    ("NET_COMMON", "net", "ns"),
    ("NET_STASHED", "net", "ns.stashed"),  # address of the dentry; an atomic_long_t before Linux 6.9
    ("DENTRY_REFERENCES", "dentry", "d_lockref.count"),
    ("DENTRY_INODE", "dentry", "d_inode"),
    ("INODE_PRIVATE", "inode", "i_private"),
    ("FILE_INODE", "file", "f_inode"),
)
_REFERENCES = ("ns.__ns_ref", "ns.count", "count")
"""Where a struct net counts what refers to it: since Linux 6.18, since 5.11, and before."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """All network namespaces."""

    table: npt.NDArray[np.void]
    """NAMESPACE_DTYPE."""
    device_names: list[list[bytes]]
    """The first names of the devices of each, as their owners chose them."""
    sockets: CensusSockets
    """`network` in its table is that of `table`."""
    sampled_share: float
    """Below 1, whatever counts objects counts those of a sample of the slabs only."""


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_namespaces` needs; empty if this kernel lacks one of them."""
    of_sockets = sockets.fields(btf)
    found = optional_offsets(btf, "HAS_NAMESPACES", _FIELDS)
    references = [path for path in _REFERENCES if btf.has_field("net", path)]
    if not of_sockets or not found or not references:
        return {}
    found |= {"NET_REFERENCES": btf.offset_bytes("net", references[0]), "NET_BYTES": btf.size_bytes("net")}
    return of_sockets | found | packet_fields(btf)


def read_namespaces(census: SlabCensus, at: Mapping[str, int], found: CensusSockets | None = None) -> Namespaces | None:
    """Every network namespace, None if this kernel lacks a field. `found`: the result of `read_sockets` of `census`."""
    if "HAS_NAMESPACES" not in at:
        return None
    networks = network_namespaces(census, at)
    found = found or sockets.read_sockets(census, at, networks)
    table = np.zeros(len(networks), NAMESPACE_DTYPE)
    table["network"] = networks
    table["inode"] = census.read(networks, at["NET_INODE"], 4)
    table["references"] = census.read(networks, at["NET_REFERENCES"], 4)
    table["passive"] = census.read(networks, at["NET_PASSIVE"], 4)
    table["size_bytes"] = at["NET_BYTES"]
    _add_processes(census, at, table)
    _add_files(census, at, table)
    _add_sockets(table, found)
    devices, owner = _devices(census, at, networks)
    table["devices"] = np.bincount(owner, minlength=len(table))
    add_packets(census, at, table, devices=devices, owner=owner, sockets=found)
    names = _names(census, at, devices, owner, len(table))
    return Namespaces(table, names, found, census.sampled_share)


def _place(table: npt.NDArray[np.void], networks: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The row of each of these struct nets, -1 for none."""
    if not len(table):
        return np.full(len(networks), -1, np.int64)
    place = np.minimum(np.searchsorted(table["network"], networks), len(table) - 1)
    return np.where(table["network"][place] == networks, place, -1)


def _add_processes(census: SlabCensus, at: Mapping[str, int], table: npt.NDArray[np.void]) -> None:
    """Count processes, each of which has one or more threads in the namespace, and the nsproxies of their threads.

    Threads of the kernel are in the initial namespace, and are not counted.
    """
    leaders, proxies, flags = [np.empty(0, "<u8")], [np.empty(0, "<u8")], [np.empty(0, "<u8")]
    for cache in census.named("task_struct"):
        tasks = census.objects(cache)
        columns = [census.read(tasks, at[f"TASK_{name}"]) for name in ("LEADER", "NAMESPACES", "FLAGS")]
        # An exited task has no namespaces.
        is_alive = census.still_allocated(cache, tasks) & (columns[1] != 0)
        for whole, column in zip((leaders, proxies, flags), columns, strict=True):
            whole.append(column[is_alive])
    proxy = np.concatenate(proxies)
    row = _place(table, census.read(proxy, at["NAMESPACES_NET"]))
    is_kernel = np.concatenate(flags) & np.uint64(_PF_KTHREAD) != 0
    table["is_initial"] = np.isin(np.arange(len(table)), row[is_kernel])
    is_process = (row >= 0) & ~is_kernel
    leader = np.concatenate(leaders)
    table["processes"] = _distinct(row[is_process], leader[is_process], len(table))
    _add_first_pid(census, at, table, row[is_process], leader[is_process])
    table["counted_references"] += _distinct(row[row >= 0], proxy[row >= 0], len(table))


def _add_first_pid(
    census: SlabCensus,
    at: Mapping[str, int],
    table: npt.NDArray[np.void],
    row: npt.NDArray[np.int64],
    leader: npt.NDArray[np.uint64],
) -> None:
    """The lowest process ID of each namespace: of a pod that is the process that keeps its namespaces."""
    pids = census.read(leader, at["TASK_PID"], 4).astype("<u4")
    first = np.full(len(table), np.iinfo(np.uint32).max, "<u4")
    np.minimum.at(first, row, pids)
    table["first_pid"] = np.where(table["processes"] > 0, first, 0)


def _distinct(rows: npt.NDArray[np.int64], values: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.uint32]:
    """The number of distinct values of each row."""
    pairs = np.unique(np.stack((rows.astype("<u8"), values), axis=1), axis=0)
    return np.bincount(pairs[:, 0].astype(np.int64), minlength=size).astype("<u4")


def _add_files(census: SlabCensus, at: Mapping[str, int], table: npt.NDArray[np.void]) -> None:
    """Count open files and mounts of the namespaces themselves. Each has a reference to the dentry of nsfs."""
    dentries = census.read(table["network"], at["NET_STASHED"])
    inodes = census.read(dentries, at["DENTRY_INODE"])
    common = table["network"] + np.uint64(at["NET_COMMON"])
    is_its_own = (dentries != 0) & (inodes != 0) & (census.read(inodes, at["INODE_PRIVATE"]) == common)
    rows = np.flatnonzero(is_its_own)
    table["is_listed_by_nsfs"] = is_its_own
    table["counted_references"] += is_its_own
    if not len(rows):
        return
    counted = census.read(dentries[rows], at["DENTRY_REFERENCES"], 4)
    order = np.argsort(inodes[rows])
    rows, counted, wanted = rows[order], counted[order].astype(np.int64), inodes[rows][order]
    files = np.zeros(len(rows), np.int64)
    for cache in census.named("filp"):
        objects = census.objects(cache)
        inode = census.read(objects, at["FILE_INODE"])
        place = np.minimum(np.searchsorted(wanted, inode), len(wanted) - 1)
        mine = wanted[place] == inode
        objects, place = objects[mine], place[mine]
        files += np.bincount(place[census.still_allocated(cache, objects)], minlength=len(rows))
    table["files"][rows] = files
    # A dentry that is being freed has a negative count.
    table["mounts"][rows] = np.where(counted < 1 << 31, np.maximum(0, counted - files), 0)


def _add_sockets(table: npt.NDArray[np.void], found: CensusSockets) -> None:
    row = _place(table, found.table["network"])
    table_of, row = found.table[row >= 0], row[row >= 0]
    size = len(table)
    table["sockets"] = np.bincount(row, minlength=size)
    table["open_sockets"] = np.bincount(row, table_of["has_file"], size)
    table["counted_references"] += np.bincount(row, table_of["holds_network"], size).astype("<u4")
    objects = np.array([found.object_bytes[protocol] for protocol in table_of["protocol"].tolist()], np.int64)
    table["size_bytes"] += np.bincount(row, table_of["charge_bytes"] + objects, size).astype(np.int64)


def _devices(
    census: SlabCensus, at: Mapping[str, int], networks: npt.NDArray[np.uint64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """The network devices of these namespaces, by address, and the number of the namespace of each.

    All lists are followed in step, up to a number of devices together.
    """
    heads = networks + np.uint64(at["NET_DEVICES"])
    owner = np.arange(len(networks))
    entries = census.memory.peek(heads)
    found, owners, count = [np.empty(0, "<u8")], [np.empty(0, np.int64)], 0
    while len(entries) and count < _MAX_DEVICES:
        devices = entries - np.uint64(at["DEVICE_LIST"])
        good = (entries != heads[owner]) & (census.read(devices, at["DEVICE_NET"]) == networks[owner])
        entries, owner, devices = entries[good], owner[good], devices[good]
        found.append(devices)
        owners.append(owner)
        count += len(devices)
        entries = census.memory.peek(entries)
    devices, first = np.unique(np.concatenate(found), return_index=True)
    return devices, np.concatenate(owners)[first]


def _names(
    census: SlabCensus, at: Mapping[str, int], devices: npt.NDArray[np.uint64], owner: npt.NDArray[np.int64], count: int
) -> list[list[bytes]]:
    """The first names of each namespace's devices."""
    names: list[list[bytes]] = [[] for _ in range(count)]
    texts = census.memory.texts(devices + np.uint64(at["DEVICE_NAME"]), _DEVICE_NAME_BYTES)
    for number, text in sorted(zip(owner.tolist(), texts, strict=True)):
        if len(names[number]) < _NAMES_KEPT:
            names[number].append(text)
    return names
