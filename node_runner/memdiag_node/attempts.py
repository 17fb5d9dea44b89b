"""The checks of a run, isolated from each other: an error in one becomes a need of that check, the others continue."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from memdiag_api.evidence import Check, Need, NeedState
from memdiag_node.errors import first_line
from memdiag_node.findings.doubts import Doubt

_MAX_DETAIL_CHARACTERS = 512
_REMEDY = (
    "Run memdiag-node on this node with this check only and without --quiet to see the complete message, and "
    "report it with the kernel release."
)
_SUBJECTS = {
    Check.BREAKDOWN: "breakdown",
    Check.ALLOC_PAGE_TRACE: "page-allocation trace",
    Check.SOCKET_QUEUES: "socket scan",
    Check.KERNEL_OBJECTS: "census of kernel objects",
    Check.OWNERS: "owners of memory",
    Check.CONTAINERS: "accounts of containers",
}
_LEAKS_STAY_VISIBLE = {Check.BREAKDOWN, Check.OWNERS, Check.CONTAINERS}
"""If a step of these fails, memory has fewer names: there are more findings about unexplained memory, not fewer."""


class Attempts:
    """The checks that are still running, and the errors of the failed ones."""

    def __init__(self, checks: Sequence[Check], progress: Callable[[str], None]) -> None:
        self.checks = list(checks)
        self.needs: list[Need] = []
        self.progress = progress

    @contextmanager
    def step(self, check: Check, doing: str, *, optional: bool = False) -> Iterator[None]:
        """Run a step of `check`. If it raises, the check is dropped, unless the step is `optional`.

        Any exception counts: an error in one check must not lose the results of the others.
        """
        try:
            yield
        except Exception as error:
            self.progress(f"{check.value}: {doing} failed: {error}")
            self.fail(check, f"{doing} failed: {first_line(error)}", optional=optional)

    def skip(self, check: Check) -> None:
        """Drop `check`, because a request to stop came before its first step."""
        self.fail(check, "the run was asked to stop before it started", remedy="Run it again.")

    def doubts(self) -> list[Doubt]:
        """Return what failed in checks that continued. An incomplete leak check cannot show that there is no leak."""
        return [
            Doubt(f"{need.name}: {need.detail}", forbids_no=not _LEAKS_STAY_VISIBLE.intersection(need.checks))
            for need in self.needs
            if need.state is NeedState.DEGRADED
        ]

    def fail(self, check: Check, why: str, *, optional: bool = False, remedy: str = _REMEDY) -> None:
        """Record an error. The check is dropped, unless the step was `optional`."""
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
