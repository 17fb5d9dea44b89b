"""Kills for lack of memory by what they hit: a pod, a container, another cgroup, or the node (pure)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from memdiag_api.containers import OomKill, OomScope
from memdiag_api.owners import MemoryOwner, OwnerKind
from memdiag_node.findings.naming import short_id
from memdiag_node.findings.owner_words import listed


@dataclass(frozen=True, slots=True)
class OomGroup:
    """Kills of one pod, container or other cgroup, or all kills because the node itself lacked memory."""

    kills: Sequence[OomKill]
    """At least one, latest first."""

    @property
    def latest(self) -> OomKill:
        """The latest kill."""
        return self.kills[0]

    @property
    def largest(self) -> OomKill:
        """The kill of the largest process."""
        return max(self.kills, key=killed_bytes)

    @property
    def is_of_node(self) -> bool:
        """Whether the node itself lacked memory."""
        return self.latest.scope is OomScope.NODE

    @property
    def has_several_places(self) -> bool:
        """Whether it is of one pod, but not of one container of it."""
        return not self.is_of_node and len({one.container_id for one in self.kills}) > 1

    @property
    def owner(self) -> MemoryOwner:
        """The container if all kills were in one; the pod if they were in several; else the cgroup or the node."""
        last = self.latest
        if self.is_of_node:
            return MemoryOwner(kind=OwnerKind.NODE)
        if last.container_id and not self.has_several_places:
            return MemoryOwner(kind=OwnerKind.CONTAINER, container_id=last.container_id, pod_uid=last.pod_uid)
        if last.pod_uid:
            return MemoryOwner(kind=OwnerKind.POD, pod_uid=last.pod_uid)
        return MemoryOwner(kind=OwnerKind.CGROUP, name=last.limit_path)

    @property
    def where(self) -> str:
        """Where the kills were: ` of 3 containers of pod UID`, ` of container 4f1c4f1c4f1c`. Empty if not known."""
        containers = len({one.container_id for one in self.kills if one.container_id})
        if self.has_several_places and containers > 1:
            return f" of {containers} containers of pod {self.latest.pod_uid}"
        return f" of pod {self.latest.pod_uid}" if self.has_several_places else of_container(self.latest)


def oom_groups(kills: Iterable[OomKill]) -> list[OomGroup]:
    """Return the groups, those with the latest kill first. `kills`: latest first.

    A restarted container has a new ID, so kills are grouped by pod if that is known.
    """
    groups: dict[tuple[OomScope, str, str], list[OomKill]] = {}
    for one in kills:
        groups.setdefault((one.scope, *_place(one)), []).append(one)
    return [OomGroup(same) for same in groups.values()]


def counted_places(groups: Iterable[OomGroup]) -> str:
    """Return how many containers, pods and other cgroups lost processes: `5 containers and 1 pod`."""
    kills = [one for group in groups for one in group.kills]
    containers = {one.container_id for one in kills if one.container_id}
    pods = {one.pod_uid for one in kills if one.pod_uid and not one.container_id}
    cgroups = {one.limit_path for one in kills if not one.pod_uid and not one.container_id}
    counts = ((len(containers), "container"), (len(pods), "pod"), (len(cgroups), "cgroup"))
    return listed([f"{count} {noun}{'s' if count > 1 else ''}" for count, noun in counts if count])


def killed_bytes(kill: OomKill) -> int:
    """Return the memory that the victim had."""
    return kill.anon_bytes + kill.file_bytes + kill.shmem_bytes


def of_container(kill: OomKill) -> str:
    """Return ` of container 4f1c4f1c4f1c` or ` of pod UID`. Empty if neither is known."""
    if kill.container_id:
        return f" of container {short_id(kill.container_id)}"
    return f" of pod {kill.pod_uid}" if kill.pod_uid else ""


def _place(kill: OomKill) -> tuple[str, str]:
    if kill.scope is OomScope.NODE:
        return "", ""
    if kill.pod_uid:
        return "pod", kill.pod_uid
    return ("container", kill.container_id) if kill.container_id else ("cgroup", kill.limit_path)
