"""A need of one or more checks, met or not."""

from collections.abc import Sequence
from pathlib import Path

from memdiag_api.evidence import Check, Need, NeedState


def met(name: str, checks: Sequence[Check]) -> Need:
    """It is there."""
    return Need(name=name, state=NeedState.MET, checks=list(checks))


def degraded(name: str, checks: Sequence[Check], detail: str, remedy: str) -> Need:
    """The checks are possible without it, but worse: `detail` says in what."""
    return Need(name=name, state=NeedState.DEGRADED, checks=list(checks), detail=detail, remedy=remedy)


def missing(name: str, checks: Sequence[Check], detail: str, remedy: str) -> Need:
    """The checks are not possible without it."""
    return Need(name=name, state=NeedState.MISSING, checks=list(checks), detail=detail, remedy=remedy)


def why_unreadable(path: Path) -> str | None:
    """Why `path` cannot be read, in the kernel's words; None when it can."""
    try:
        with path.open("rb", buffering=0) as file:
            file.read(8)  # tables of page frames are read in whole entries
    except OSError as error:
        return error.strerror or str(error)
    return None
