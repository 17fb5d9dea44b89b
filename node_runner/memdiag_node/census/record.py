"""The census in the document: page frames, and whatever was read through the slabs."""

from collections.abc import Mapping

from memdiag_api.evidence import Census
from memdiag_node.census.clues.clues import clues_record
from memdiag_node.census.files.dentries import dentries_record
from memdiag_node.census.files.found import files_record
from memdiag_node.census.findings import ObjectFindings
from memdiag_node.census.frames.frames import FrameCensus
from memdiag_node.census.frames.summary import census_of
from memdiag_node.census.networks.record import namespaces_record
from memdiag_node.census.packets.record import packets_record
from memdiag_node.census.slab_caches.slab_caches import slab_record
from memdiag_node.processes import OwnerOf
from memdiag_node.procfs.cgroup import ContainerIdentity


def census_record(
    counted: FrameCensus | None,
    found: ObjectFindings | None,
    containers: Mapping[int, ContainerIdentity],
    owner_of: OwnerOf,
    *,
    page_bytes: int,
) -> Census:
    """Return the record. `containers`: the container of each memory cgroup, by its inode."""
    census = census_of(counted, containers, page_bytes=page_bytes) if counted else Census(compound=[])
    if found is None:
        return census
    return census.model_copy(
        update={
            "slab": slab_record(found.slab, found.meminfo, containers),
            "files": found.files and files_record(found.files, owner_of, containers, page_bytes=page_bytes),
            "dentries": found.dentries and dentries_record(found.dentries),
            "namespaces": found.namespaces and namespaces_record(found.namespaces),
            "packets": found.packets
            and packets_record(found.packets, lambda address: found.functions.get(address, ""), page_bytes=page_bytes),
            "clues": None
            if found.clues is None
            else clues_record(found.clues, found.frames, sees_symbols=found.sees_symbols),
            "object_seconds": found.scan_seconds,
        }
    )
