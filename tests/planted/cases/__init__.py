"""Cases in which nodes lose memory, small enough for one machine, and loads that are healthy: each with its truth."""

from contextlib import AbstractContextManager

from planted.cases import (
    buffers,
    churn,
    containers,
    growth,
    healthy,
    node_settings,
    processes,
    queues,
    shared_memory,
    slab,
    unread,
)
from planted.cases.case import Case, PlantedTruth

_FAMILIES = (
    unread,
    queues,
    buffers,
    slab,
    shared_memory,
    processes,
    node_settings,
    growth,
    containers,
    healthy,
    churn,
)

CASES: dict[str, Case] = {
    case.name: case
    for family in (
        unread,
        queues,
        buffers,
        slab,
        shared_memory,
        processes,
        node_settings,
        growth,
        containers,
        healthy,
        churn,
    )
    for case in family.CASES
}
"""By name, in the order in which they are tried. A container's killed process is the last before the healthy loads: for
ten minutes that comes before ordinary uses of memory."""


def plant(name: str) -> AbstractContextManager[PlantedTruth]:
    """Plant the case of that name; the truth is known when it is planted. Raises UnavailableError and KeyError."""
    return CASES[name].plant()
