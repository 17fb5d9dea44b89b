"""The census of kernel objects on each of Debian's kernels: what a run finds of every load, planted at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from memdiag_api.census.files import CachedFile
from memdiag_api.census.packets import PacketPlace, WaitingPackets
from memdiag_api.census.slab import SlabCache
from memdiag_api.evidence import Census, Check, Evidence, Holder, HolderKind, NeedState
from support.guest_lab import Answers

PACKET_OVERHEAD_BYTES = 65_000
BACKLOGS = ("nfqueue", "fragments", "zombie", "neighbour", "tun")

pytestmark = pytest.mark.timeout(900)  # the first test of each kernel boots it


@dataclass(frozen=True)
class Found:
    """What a run found in the guest as it is, and with every load."""

    before: Evidence
    after: Evidence
    planted: dict[str, dict[str, Any]]
    said: str

    @property
    def census(self) -> Census:
        assert self.after.census is not None, self.said
        return self.after.census

    def packets(self, load: str) -> list[WaitingPackets]:
        """The groups of packets of the load's network namespace."""
        assert self.census.packets is not None, self.said
        namespace = self.planted[load]["network_namespace"]
        return [group for group in self.census.packets.groups if group.network_namespace == namespace]

    def grown(self, is_one: Callable[[SlabCache], bool]) -> tuple[int, int]:
        """Objects and bytes of caches, more than before."""
        objects = size_bytes = 0
        for evidence, sign in ((self.before, -1), (self.after, 1)):
            assert evidence.census is not None
            assert evidence.census.slab is not None, self.said
            for cache in filter(is_one, evidence.census.slab.caches):
                objects += sign * cache.objects
                size_bytes += sign * cache.size_bytes
        return objects, size_bytes

    def held_by(self, load: str, kind: HolderKind) -> list[Holder]:
        """The holders of this kind that the load's process owns."""
        pid = self.planted[load]["pid"]
        return [one for one in self.after.holders if one.kind is kind and pid in {owner.pid for owner in one.owners}]


@pytest.fixture
def found(guest: Answers) -> Found:
    answer = guest["census"]
    runs = answer["without"], answer["with"]
    said = "\n".join(line for run in runs for _, line in run["stderr"])
    assert [run["status"] for run in runs] == [0, 0], said
    before, after = (Evidence.model_validate(run["evidence"]) for run in runs)
    return Found(before, after, answer["planted"], said)
