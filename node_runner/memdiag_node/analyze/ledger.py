"""The ledger: allocpage's bytes, split into what is known to hold them and the rest."""

from collections.abc import Mapping, Sequence

from memdiag_api.evidence import Breakdown, ContainerShare, HolderKind, Ledger, LedgerLine


def ledger_of(
    breakdown: Breakdown,
    *,
    pinned_by_kind_bytes: Mapping[HolderKind, int],
    containers: Sequence[ContainerShare],
    unheld_bytes: int,
) -> Ledger:
    """Split `breakdown`'s allocpage.

    `pinned_by_kind_bytes` has what all holders of a kind pin, each block counted once. `unheld_bytes` is what the trace
    saw allocated and not freed, and no holder has: its stacks are known, its holder is not. What is pinned need not be
    allocpage to its last page (a packet can carry a page of a file): where the parts exceed the whole, nothing is left
    unexplained, and the parts are shown as they were measured.
    """
    lines = [
        LedgerLine(name=f"{kind.value}s", size_bytes=size_bytes) for kind, size_bytes in pinned_by_kind_bytes.items()
    ]
    lines.append(LedgerLine(name="TracedWithoutHolder", size_bytes=unheld_bytes))
    known_bytes = sum(line.size_bytes for line in lines)
    return Ledger(
        alloc_page_bytes=breakdown.alloc_page_bytes,
        lines=sorted(lines, key=lambda line: -line.size_bytes),
        unexplained_bytes=max(0, breakdown.alloc_page_bytes - known_bytes),
        containers=list(containers),
    )
