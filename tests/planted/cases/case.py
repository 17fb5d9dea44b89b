"""What a planted case is: a load of known size, and what a diagnosis must say about it.

Kinds of findings and classes of memory are spelled as in the document. Nothing here imports memdiag: a case can be
planted in a container that has only Python.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

from planted.child import HeldLoad


class Answer(StrEnum):
    """What LeakDetected may say."""

    LEAK = "leak"
    """Memory is lost: False is wrong."""
    HARMLESS = "harmless"
    """Memory is used, and by somebody who may need it: True is wrong."""
    OPEN = "open"
    """One window cannot decide whether anybody needs it: every answer is right."""


@dataclass(frozen=True, slots=True)
class PlantedTruth:
    """What was planted, as the planting process or the kernel counted it, and what the first finding must say.

    The owner is right if any one of `pids` with `fds`, `names`, `container_id`, `processes` or `owning_kinds` matches.
    """

    answer: Answer
    kinds: tuple[str, ...] = ()
    """The kinds of findings that describe it. Empty: a healthy load, for which no finding is expected."""
    memory_classes: tuple[str, ...] = ()
    """The class of the finding is one of these."""
    size_bytes: int = 0
    """Of all classes. 0 if `bytes_per_second` is known instead."""
    bytes_per_second: int = 0
    """How fast it grows while it is diagnosed."""
    pids: tuple[int, ...] = ()
    fds: tuple[int, ...] = ()
    """At least one of these, if the finding lists fds. Empty: any."""
    names: tuple[str, ...] = ()
    """Parts of the name of an owner without a process."""
    container_id: str = ""
    processes: int = 0
    """At least that many processes hold it together."""
    owning_kinds: tuple[str, ...] = ()
    """Kinds of findings that identify the owner by themselves, because there is only one on a node."""
    other_classes: tuple[str, ...] = ()
    """Further classes in which a part of `size_bytes` is."""
    freed_bytes: int = 0
    """What comes back when the owner ends, if that is more than `size_bytes`. 0: the same."""
    is_free_of_slab: bool = False
    """No finding at all may say that slab memory grows."""

    @property
    def is_healthy(self) -> bool:
        """Whether this is a load about which nothing needs to be said."""
        return not self.kinds


class UnavailableError(Exception):
    """This machine cannot hold the case: its kernel lacks something. The message says what."""


@dataclass(frozen=True, slots=True)
class Case:
    """A load and how to plant it."""

    name: str
    summary: str
    plant: Callable[[], AbstractContextManager[PlantedTruth]]
    """Plants it, and removes all of it at the end. Raises UnavailableError."""
    is_healthy: bool = False


HEALTHY = PlantedTruth(Answer.HARMLESS)
HEALTHY_SLAB = PlantedTruth(Answer.HARMLESS, is_free_of_slab=True)


def of_child(
    child: HeldLoad,
    answer: Answer,
    kinds: tuple[str, ...],
    memory_class: str,
    *other_classes: str,
) -> PlantedTruth:
    """The truth of a load that a child process holds: its `size_bytes`, and its `fds` and `pids` if it counted any."""
    found = child.truth
    return PlantedTruth(
        answer,
        kinds,
        (memory_class,),
        size_bytes=found["size_bytes"],
        pids=tuple(found.get("pids", [child.pid])),
        fds=tuple(found.get("fds", ())),
        other_classes=other_classes,
    )
