"""What each check needs: kernel features, privileges and files. They are probed, never guessed."""

from collections.abc import Sequence

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.preflight import bpf, counters
from memdiag_node.procfs.roots import HostRoots


def preflight(checks: Sequence[Check], roots: HostRoots) -> list[Need]:
    """Return every need of `checks`, in the order in which to fix them."""
    return [need for need in (*bpf.needs(roots), *counters.needs(roots)) if set(need.checks) & set(checks)]


def possible_checks(checks: Sequence[Check], needs: Sequence[Need]) -> tuple[Check, ...]:
    """Return those of `checks` that no missing need prevents."""
    blocked = {check for need in needs if need.state is NeedState.MISSING for check in need.checks}
    return tuple(check for check in checks if check not in blocked)


def explain_missing(needs: Sequence[Need]) -> str:
    """Return one line for each missing need: what is missing, and how to fix it."""
    return "\n".join(
        f"  {need.name}: {need.detail} {need.remedy}".rstrip() for need in needs if need.state is NeedState.MISSING
    )
