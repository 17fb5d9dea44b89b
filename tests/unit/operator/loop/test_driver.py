"""The driver asks until there is a plan, and carries out that one."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf

import pytest

from memdiag_operator.config import OperatorConfig
from memdiag_operator.decide.plan import Plan
from memdiag_operator.decide.snapshot import Needs, Snapshot
from memdiag_operator.loop import driver as module
from memdiag_operator.loop.driver import drive
from support.kubernetes_objects import CONFIG, NODE, NOW, diagnosis, node, running_status

ONE = Snapshot(diagnosis=diagnosis(status=running_status()))
STATUS = ONE.diagnosis.status.model_copy(update={"progress": "Tracing 41%"})


@dataclass
class World:
    """Remembers what it was asked for and what was carried out."""

    asked: list[Needs] = field(default_factory=list)
    applied: list[tuple[Snapshot, Plan]] = field(default_factory=list)
    since: float = inf

    def now(self) -> datetime:
        return NOW

    def since_write_seconds(self) -> float:
        return self.since

    async def fetch(self, needs: Needs) -> Snapshot:
        self.asked.append(needs)
        return replace(needs.snapshot, nodes={**needs.snapshot.nodes, **dict.fromkeys(needs.nodes, node())})

    async def apply(self, snapshot: Snapshot, plan: Plan) -> Mapping[str, str]:
        self.applied.append((snapshot, plan))
        return {"runner": "refused"}


def test_what_is_read_is_decided_about_again_until_there_is_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    def decide(snapshot: Snapshot, config: OperatorConfig, now: datetime) -> Plan | Needs:
        assert (config, now) == (CONFIG, NOW)
        unknown = [name for name in (NODE, "another") if name not in snapshot.nodes]
        return Needs(snapshot, nodes={unknown[0]: inf}) if unknown else Plan(delete_diagnosis=True)

    monkeypatch.setattr(module, "decide", decide)
    world = World()
    done = asyncio.run(drive(world, ONE, CONFIG))
    assert [list(needs.nodes) for needs in world.asked] == [[NODE], ["another"]]
    ((snapshot, plan),) = world.applied
    assert list(snapshot.nodes) == [NODE, "another"]
    assert plan == done.plan == Plan(delete_diagnosis=True)
    assert done.refusals == {"runner": "refused"}


def test_mere_progress_is_not_carried_out_so_soon_after_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "decide", lambda *_: Plan(status=STATUS))
    for since, plan in ((0.0, Plan()), (CONFIG.sweep.active_seconds / 2, Plan(status=STATUS))):
        world = World(since=since)
        assert asyncio.run(drive(world, ONE, CONFIG)).plan == plan
        assert world.applied == [(ONE, plan)]
