"""The checks of a run, each on its own: what goes wrong in one becomes a need of that check, and the others go on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.conclusion.doubts import Doubt
from memdiag_node.kernel.btf import BtfError
from memdiag_node.kernel.errors import BpfError
from memdiag_node.procfs.errors import ProcFormatError

_MAX_DETAIL_CHARACTERS = 512
_REMEDY = (
    "Run memdiag-node by hand on this node, with this check only and without --quiet, for the whole message; and "
    "report it with the kernel's release."
)
_SUBJECTS = {
    Check.BREAKDOWN: "breakdown",
    Check.ALLOC_PAGE_TRACE: "page-allocation trace",
    Check.SOCKET_QUEUES: "socket scan",
}


class Attempts:
    """Which checks are still being made, and what the failed ones ran into."""

    def __init__(self, checks: Sequence[Check], progress: Callable[[str], None]) -> None:
        self.checks = list(checks)
        self.needs: list[Need] = []
        self.progress = progress

    @contextmanager
    def step(self, check: Check, doing: str, *, optional: bool = False) -> Iterator[None]:
        """Do a step of `check`. When it raises, the check is no longer made; when it is `optional`, it goes on.

        Any exception counts: whatever one check runs into must not cost what the others found.
        """
        try:
            yield
        except Exception as error:
            self.progress(f"{check.value}: {doing} failed: {error}")
            self.fail(check, f"{doing} failed: {first_line(error)}", optional=optional)

    def skip(self, check: Check) -> None:
        """A request to stop came before the first step of `check`."""
        self.fail(check, "the run was asked to stop before it began", remedy="Run it again.")

    def doubts(self) -> list[Doubt]:
        """What failed in checks that went on. A leak check that was not made whole cannot say that there is no leak."""
        return [
            Doubt(f"{need.name}: {need.detail}", forbids_no=Check.BREAKDOWN not in need.checks)
            for need in self.needs
            if need.state is NeedState.DEGRADED
        ]

    def fail(self, check: Check, why: str, *, optional: bool = False, remedy: str = _REMEDY) -> None:
        """Note what went wrong; unless it was `optional`, the check is no longer made."""
        if not optional and check in self.checks:
            self.checks.remove(check)
        self.needs.append(
            Need(
                name=_SUBJECTS[check],
                state=NeedState.DEGRADED if optional else NeedState.MISSING,
                checks=[check],
                detail=why[:_MAX_DETAIL_CHARACTERS],
                remedy=remedy,
            )
        )


def first_line(error: Exception) -> str:
    """What went wrong, in one line: the log of the kernel's verifier has hundreds."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, BpfError | BtfError | OSError | ProcFormatError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
