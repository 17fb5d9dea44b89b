"""The summary of a run: the sizes that later runs of the same node and boot compare with (docs/history.md)."""

from memdiag_api import limits
from memdiag_api.evidence import Check, Holder
from memdiag_api.history import HolderSize, RunSummary, SizeByName
from memdiag_node.findings.naming import KINDS, THIS_RUN, process_name, short_id
from memdiag_node.findings.situation import Situation


def summary_of(situation: Situation, run_id: str) -> RunSummary | None:
    """Return the summary of the run. None if the sizes of the classes are not known."""
    measured, breakdown = situation.measured, situation.measured.breakdown
    if breakdown is None:
        return None
    is_scanned = Check.SOCKET_QUEUES in measured.checks and measured.coverage is not None
    return RunSummary(
        run_id=run_id,
        end_time=measured.window.end_time,
        boot_id=measured.host.boot_id[: limits.MAX_SUMMARY_TEXT],
        node_name=measured.host.node_name,
        uptime_seconds=measured.uptime_seconds,
        mem_total_bytes=measured.host.mem_total_bytes,
        classes=[_size(one.name, one.size_bytes) for one in breakdown.classes if one.size_bytes],
        alloc_page_bytes=breakdown.alloc_page_bytes,
        alloc_page_error_bytes=breakdown.alloc_page_error_bytes,
        unexplained_bytes=breakdown.alloc_page_bytes - situation.held_bytes if is_scanned else None,
        holders=holder_sizes(situation)[: limits.MAX_SUMMARY_HOLDERS],
        slab_caches=cache_sizes(situation)[: limits.MAX_SUMMARY_CACHES],
    )


def holder_sizes(situation: Situation) -> list[HolderSize]:
    """Return what the holders of each kind and owner keep, largest first. Memory that several share counts for each.

    What this run itself keeps is among them, so that a later run does not take it for memory of the node.
    """
    sizes: dict[tuple[str, str, str], int] = {}
    for one in (*situation.measured.holdings, *situation.measured.own_holdings):
        holder = one.holder
        key = (holder.kind.value, holder.memory_class, THIS_RUN if one.is_own else _owner(holder))
        sizes[key] = sizes.get(key, 0) + holder.pinned_bytes
    found = [
        HolderSize(kind=kind, memory_class=memory_class[: limits.MAX_SUMMARY_TEXT], owner=owner, size_bytes=size_bytes)
        for (kind, memory_class, owner), size_bytes in sizes.items()
        if size_bytes
    ]
    return sorted(found, key=lambda one: -one.size_bytes)


def cache_sizes(situation: Situation) -> list[SizeByName]:
    """Return the slab caches that the kernel cannot reclaim, largest first."""
    census = situation.measured.census
    caches = census.slab.caches if census and census.slab else []
    found = [_size(one.name, one.size_bytes) for one in caches if not one.reclaimable and one.size_bytes]
    return sorted(found, key=lambda one: -one.size_bytes)


def _size(name: str, size_bytes: int) -> SizeByName:
    return SizeByName(name=_writable(name), size_bytes=size_bytes)


def _owner(holder: Holder) -> str:
    """Return who has a holder, in words that are the same in every run while it has the same owner."""
    if not holder.owners:
        return _writable(holder.unowned_reason or KINDS[holder.kind])
    owner = holder.owners[0]
    return _writable(process_name(owner) + (f" in {short_id(owner.container_id)}" if owner.container_id else ""))


def _writable(text: str) -> str:
    """Return the start of `text` without characters that UTF-8 cannot represent."""
    return text.encode(errors="replace").decode()[: limits.MAX_SUMMARY_TEXT]
