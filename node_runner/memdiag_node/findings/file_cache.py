"""The cache of files: how much, who caused it, and that the kernel gives it back (pure)."""

from collections.abc import Iterator, Sequence

from memdiag_api.census.files import CachedFile, FileCensus, FileKind
from memdiag_api.findings import FindingKind, FreedBy, LeakAnswer
from memdiag_api.memory_classes import ClassName
from memdiag_api.owners import ClassOwners, MemoryOwner, OwnerKind
from memdiag_api.units import format_bytes
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.owner_words import listed, who
from memdiag_node.findings.ramfs import RAMFS_TYPES, ramfs_systems
from memdiag_node.findings.thresholds import Thresholds
from memdiag_node.owners.file_classes import system_owner

_MAX_LISTED = 4
_LISTED_SHARE = 0.02
_CACHE_KINDS = (FileKind.FILE, FileKind.BLOCK_DEVICE)
_ADVICE = (
    "Nothing needs to be done: an unused page of memory would be of no use to anyone. If a pod is evicted because of "
    "its cache, limit what it reads and writes through the cache."
)


def file_cache(
    owners: Sequence[ClassOwners],
    files: FileCensus | None,
    *,
    thresholds: Thresholds,
    mem_total_bytes: int,
) -> Iterator[Draft]:
    """Yield the cache of each container that has at least `large_bytes`, and all the rest, if it is notable.

    File cache is not a leak, however much it is: the kernel frees it when memory is needed. What a ramfs has is not
    part of it (findings/ramfs.py).
    """
    of_class = next((one for one in owners if one.memory_class == ClassName.FILE_CACHE), None)
    if of_class is None:
        return
    least_bytes = thresholds.large_bytes(mem_total_bytes)
    in_containers = [one for one in of_class.owners if one.owner.kind in {OwnerKind.CONTAINER, OwnerKind.POD}]
    apart = [one for one in in_containers if one.size_bytes >= least_bytes]
    pinned, listed_files = ramfs_systems(files), files.files if files else []
    cached = [one for one in listed_files if one.kind in _CACHE_KINDS and one.file_system not in RAMFS_TYPES]
    for share in apart:
        owned = [one for one in cached if _is_of(one, share.owner)]
        yield _draft(
            share.owner, share.size_bytes, f"files that {who(share.owner)} uses", _largest(owned, share.size_bytes)
        )
    rest_bytes = of_class.size_bytes - sum(one.size_bytes for one in apart) - sum(one.cached_bytes for one in pinned)
    if rest_bytes >= thresholds.notable_bytes(mem_total_bytes):
        said = [one.owner for one in apart] + [system_owner(one) for one in pinned]
        large = [one for one in of_class.owners if one.size_bytes >= _LISTED_SHARE * rest_bytes]
        others = [one for one in large if one.owner not in said]
        reasons = [f"{format_bytes(one.size_bytes)} of it belong to {who(one.owner)}" for one in others[:_MAX_LISTED]]
        outside = [one for one in cached if not any(_is_of(one, share.owner) for share in apart)]
        of_others = " outside of the containers with a finding of their own" if apart else ""
        yield _draft(
            MemoryOwner(kind=OwnerKind.NODE),
            rest_bytes,
            f"files{of_others}",
            [*reasons, *_largest(outside, rest_bytes)],
        )


def _draft(owner: MemoryOwner, size_bytes: int, of_what: str, reasons: Sequence[str]) -> Draft:
    return Draft(
        kind=FindingKind.FILE_CACHE,
        memory_class=ClassName.FILE_CACHE,
        size_bytes=size_bytes,
        owner=owner,
        leak=LeakAnswer.NO,
        reclaimable=True,
        freed_by=FreedBy(action="the kernel gives it back when memory is needed", size_bytes=size_bytes),
        sentence=f"{format_bytes(size_bytes)} are cache of {of_what}; the kernel gives it back when memory is needed",
        reasons=reasons,
        advice=_ADVICE,
        sections=("owners", "census.files"),
    )


def _largest(files: Sequence[CachedFile], size_bytes: int) -> list[str]:
    chosen = sorted(files, key=lambda one: -one.cached_bytes)[:_MAX_LISTED]
    parts = [
        f"{one.path or f'inode {one.inode} of {one.file_system}'} ({format_bytes(one.cached_bytes)})"
        for one in chosen
        if one.cached_bytes >= _LISTED_SHARE * size_bytes
    ]
    return [f"the largest files: {listed(parts)}"] if parts else []


def _is_of(file: CachedFile, owner: MemoryOwner) -> bool:
    charge = file.charged
    return charge is not None and (charge.container_id, charge.pod_uid) == (owner.container_id, owner.pod_uid)
