"""Findings about holders that keep much memory, by table."""

from dataclasses import replace

import numpy as np
import pytest

from memdiag_api.evidence import Holder, HolderKind, Owner
from memdiag_api.findings import FindingKind, LeakAnswer
from memdiag_api.owners import OwnerKind
from memdiag_node.findings.draft import Draft
from memdiag_node.findings.large_holder import large_holders
from memdiag_node.findings.situation import Situation
from memdiag_node.findings.thresholds import GIB, MIB, Thresholds
from memdiag_node.holding import PINNED_DTYPE, Holding
from support.arbitrary_measurements import EMPTY

K = HolderKind


def holder(
    kind: HolderKind,
    pinned_bytes: int,
    *,
    pid: int = 7,
    container: str = "",
    pod: str = "",
    description: str = "",
    owned: bool = True,
) -> Holder:
    owner = Owner(pid=pid, comm="app", fds=[5], container_id=container, pod_uid=pod)
    return Holder(
        kind=kind,
        memory_class="Vmalloc" if kind is K.BPF_MAP else "AllocPage",
        owners=[owner] if owned else [],
        owners_total=int(owned),
        pinned_bytes=pinned_bytes,
        description=description,
    )


def found(*holders: Holder) -> list[Draft]:
    holdings = [Holding(one, np.empty(0, PINNED_DTYPE)) for one in holders]
    situation = Situation(replace(EMPTY, holdings=holdings), Thresholds())
    return list(large_holders(situation, range(len(holdings))))


@pytest.mark.parametrize(
    ("one", "leak"),
    [
        (holder(K.PIPE, 100 * MIB), LeakAnswer.UNKNOWN),
        (holder(K.PACKET_RING, 9 * GIB), LeakAnswer.NO),
        (holder(K.BPF_MAP, 9 * GIB), LeakAnswer.NO),
        (holder(K.BPF_MAP, GIB, owned=False), LeakAnswer.UNKNOWN),
        (holder(K.FTRACE_BUFFER, GIB, owned=False), LeakAnswer.NO),
        (holder(K.PAGE_POOL, 100 * MIB, owned=False, description="page pool of eth0"), LeakAnswer.NO),
        (holder(K.PAGE_POOL, GIB, owned=False, description="page pool of eth0"), LeakAnswer.UNKNOWN),
        (
            holder(K.PAGE_POOL, 100 * MIB, owned=False, description="page pool of eth0, detached from it"),
            LeakAnswer.UNKNOWN,
        ),
        (holder(K.SOCKET, 100 * MIB), LeakAnswer.NO),
        (holder(K.SOCKET, GIB), LeakAnswer.UNKNOWN),
        (holder(K.EVENT_QUEUE, 100 * MIB), LeakAnswer.UNKNOWN),
    ],
)
def test_whether_it_may_be_a_leak(one: Holder, leak: LeakAnswer) -> None:
    (draft,) = found(one)
    assert (draft.kind, draft.leak, draft.size_bytes) == (FindingKind.LARGE_HOLDER, leak, one.pinned_bytes)
    assert draft.is_notable
    assert (draft.freed_by is not None) == (bool(one.owners) or one.kind in {K.FTRACE_BUFFER, K.BPF_MAP})


def test_small_holders_are_no_finding() -> None:
    assert found(holder(K.PIPE, 30 * MIB), holder(K.PACKET_RING, 30 * MIB)) == []


def test_holders_of_one_process_are_summed_up() -> None:
    (draft,) = found(*(holder(K.PIPE, 30 * MIB) for _ in range(3)))
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pid, draft.size_bytes) == (OwnerKind.PROCESS, 7, 90 * MIB)
    assert draft.sentence == "3 pipes of app[7] keep 90.0 MiB of AllocPage."


def test_processes_of_one_container_are_summed_up_and_then_those_of_the_node() -> None:
    of_container = [holder(K.PIPE, 30 * MIB, pid=pid, container="c" * 64) for pid in (1, 2, 3)]
    others = [holder(K.PIPE, 30 * MIB, pid=pid) for pid in (4, 5, 6)]
    container, node = found(*of_container, *others)
    assert container.owner is not None
    assert (container.owner.kind, container.owner.container_id, container.owner.processes) == (
        OwnerKind.CONTAINER,
        "c" * 64,
        3,
    )
    assert node.owner is not None
    assert (node.owner.kind, node.owner.processes, node.size_bytes) == (OwnerKind.NODE, 3, 90 * MIB)


def test_what_no_process_has_is_summed_up_apart_from_what_processes_have() -> None:
    pinned = [holder(K.BPF_MAP, 50 * MIB, owned=False, description=f"BPF map {number}") for number in range(4)]
    (draft,) = found(*pinned, holder(K.BPF_MAP, 27 * MIB))
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.name, draft.owner.processes) == (OwnerKind.NODE, "BPF map 0", 0)
    assert (draft.size_bytes, draft.leak) == (200 * MIB, LeakAnswer.UNKNOWN)
    assert draft.sentence == "4 BPF maps of no process (BPF map 0) keep 200 MiB of Vmalloc."
    assert draft.freed_by is not None
    assert draft.freed_by.action.startswith("Unload the programs that use these maps")
    assert draft.freed_by.size_bytes == 200 * MIB


def test_what_no_process_has_counts_with_the_rest_if_it_is_not_enough_by_itself() -> None:
    (draft,) = found(holder(K.BPF_MAP, 40 * MIB, owned=False), holder(K.BPF_MAP, 30 * MIB))
    assert draft.size_bytes == 70 * MIB
    assert draft.sentence.startswith("2 BPF maps of several owners")


def test_containers_of_one_pod_are_summed_up() -> None:
    holders = [holder(K.PIPE, 30 * MIB, pid=pid, container=f"{pid}" * 64, pod="u") for pid in (1, 2, 3)]
    (draft,) = found(*holders, holder(K.PIPE, 30 * MIB, pid=4))
    assert draft.owner is not None
    assert (draft.owner.kind, draft.owner.pod_uid, draft.owner.container_id) == (OwnerKind.POD, "u", "")
    assert draft.sentence == "3 pipes of pod u keep 90.0 MiB of AllocPage."


@pytest.mark.parametrize(
    ("memory_class", "claims"),
    [("Vmalloc", {"Vmalloc": GIB, "SUnreclaim": MIB}), ("SUnreclaim", {"SUnreclaim": GIB + MIB})],
)
def test_pinned_bytes_and_heads_are_claimed_of_their_classes(memory_class: str, claims: dict[str, int]) -> None:
    one = holder(K.SOCKET, GIB).model_copy(update={"memory_class": memory_class, "head_bytes": MIB})
    (draft,) = found(one)
    assert draft.size_bytes == GIB + MIB
    assert draft.claimed_bytes == claims


def test_a_large_process_is_named_apart_from_its_container() -> None:
    drafts = found(holder(K.PIPE, GIB, pid=1, container="c" * 64), holder(K.PIPE, MIB, pid=2, container="c" * 64))
    assert [one.owner and one.owner.pid for one in drafts] == [1]
