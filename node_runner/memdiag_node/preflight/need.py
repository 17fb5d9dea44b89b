"""A need: a prerequisite of one or more checks, and whether it is met."""

from collections.abc import Sequence
from pathlib import Path

from memdiag_api.evidence import Check, Need, NeedState


def met(name: str, checks: Sequence[Check]) -> Need:
    """Return a need that is met."""
    return Need(name=name, state=NeedState.MET, checks=list(checks))


def degraded(name: str, checks: Sequence[Check], detail: str, remedy: str) -> Need:
    """Return a need without which the checks are possible, but limited. `detail` describes the limitation."""
    return Need(name=name, state=NeedState.DEGRADED, checks=list(checks), detail=detail, remedy=remedy)


def missing(name: str, checks: Sequence[Check], detail: str, remedy: str) -> Need:
    """Return a need without which the checks are not possible."""
    return Need(name=name, state=NeedState.MISSING, checks=list(checks), detail=detail, remedy=remedy)


def why_unreadable(path: Path) -> str | None:
    """Return the error message of the kernel if `path` cannot be read, else None."""
    try:
        with path.open("rb", buffering=0) as file:
            file.read(8)  # tables of page frames allow only reads of whole entries
    except OSError as error:
        return error.strerror or str(error)
    return None
