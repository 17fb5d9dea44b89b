"""Decide, fetch, decide again, apply: one step of one diagnosis, for the operator and for the tests' clockwork."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.decision import decide
from memdiag_operator.decide.pace import paced
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.snapshot import Needs, Snapshot


class World(Protocol):
    """What a diagnosis is part of: it can be read and changed."""

    def now(self) -> datetime:
        """The API server's time."""

    def since_write_seconds(self) -> float:
        """How long ago the status of the diagnosis was last written; infinite if unknown."""

    async def fetch(self, needs: Needs) -> Snapshot:
        """The snapshot of `needs` with everything that it lacks."""

    async def apply(self, snapshot: Snapshot, plan: Plan) -> Mapping[str, str]:
        """Carry out `plan`, made for `snapshot`. Returns by pod name why it was not created, or not as it was sent."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done."""

    plan: Plan
    refusals: Mapping[str, str]


async def drive(world: World, snapshot: Snapshot, config: OperatorConfig) -> Applied:
    """Take the diagnosis of `snapshot` one step further."""
    before = snapshot.diagnosis
    while isinstance(answer := await asyncio.to_thread(decide, snapshot, config, world.now()), Needs):
        snapshot = await world.fetch(answer)
    plan = paced(
        answer,
        before,
        snapshot,
        since_write_seconds=world.since_write_seconds(),
        progress_seconds=config.sweep.active_seconds / 2,
        now=world.now(),
    )
    return Applied(plan, await world.apply(snapshot, plan))
