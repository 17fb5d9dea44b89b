"""The ledger: the bytes of allocpage, split by what is known to hold them, and the rest."""

from collections.abc import Mapping, Sequence

from memdiag_api.evidence import Breakdown, ContainerShare, HolderKind, Ledger, LedgerLine

_WITHOUT_HOLDER = "TracedWithoutHolder"


def ledger_of(
    breakdown: Breakdown,
    *,
    held_by_kind_bytes: Mapping[HolderKind, int],
    containers: Sequence[ContainerShare],
    unheld_bytes: int,
) -> Ledger:
    """Split `breakdown`'s allocpage; the lines and the unexplained rest add up to it exactly.

    `held_by_kind_bytes` is the part that all holders of a kind pin, with each block counted once. `unheld_bytes` is the
    part that the trace saw allocated and not freed and that is in no holder: its stacks are known, its holder is not.
    Holders, trace and counters are read one after the other, so the lines can add up to more than allocpage. The rest
    is negative then, and the lines are shown as measured.
    """
    lines = [
        LedgerLine(name=f"{kind.value}s", size_bytes=size_bytes) for kind, size_bytes in held_by_kind_bytes.items()
    ]
    lines.append(LedgerLine(name=_WITHOUT_HOLDER, size_bytes=unheld_bytes))
    return Ledger(
        alloc_page_bytes=breakdown.alloc_page_bytes,
        lines=sorted(lines, key=lambda line: -line.size_bytes),
        unexplained_bytes=breakdown.alloc_page_bytes - sum(line.size_bytes for line in lines),
        containers=list(containers),
    )


def held_bytes(ledger: Ledger) -> int:
    """Return the allocpage that is in known holders. Memory that was only traced is not explained."""
    return sum(line.size_bytes for line in ledger.lines if line.name != _WITHOUT_HOLDER)
