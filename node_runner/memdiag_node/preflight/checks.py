"""What each check needs from the kernel, from rights and from files, and whether it is there: probed, never guessed."""

from collections.abc import Sequence

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.preflight import bpf, counters
from memdiag_node.procfs.roots import HostRoots


def preflight(checks: Sequence[Check], roots: HostRoots) -> list[Need]:
    """Every need of `checks`, in the order in which a person would mend them."""
    return [need for need in (*bpf.needs(roots), *counters.needs(roots)) if set(need.checks) & set(checks)]


def possible_checks(checks: Sequence[Check], needs: Sequence[Need]) -> tuple[Check, ...]:
    """Those of `checks` that no missing need stands in the way of."""
    blocked = {check for need in needs if need.state is NeedState.MISSING for check in need.checks}
    return tuple(check for check in checks if check not in blocked)


def explain_missing(needs: Sequence[Need]) -> str:
    """One line for each missing need: what, and how to mend it."""
    return "\n".join(
        f"  {need.name}: {need.detail} {need.remedy}".rstrip() for need in needs if need.state is NeedState.MISSING
    )
