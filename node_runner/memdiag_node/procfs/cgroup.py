"""The container and pod of a process, from /proc/PID/cgroup (man 7 cgroups).

Paths created by the kubelet and the container runtimes:

    cgroupfs driver   /kubepods/burstable/pod<uid>/<container>
    systemd driver    /kubepods.slice/.../kubepods-burstable-pod<uid>.slice/cri-containerd-<container>.scope
                      (also crio-, docker-; the dashes of the uid are underscores there)
    mixed drivers     /system.slice/containerd.service/kubepods-burstable-pod<uid>.slice:cri-containerd:<container>

A path may have a prefix (if the node itself is a container), or start with `/..` (if read from another cgroup
namespace).
"""

import re
from dataclasses import dataclass

from memdiag_node.procfs.errors import ProcFormatError

_LINE = re.compile(rb"\d+:(?P<controllers>[^:]*):(?P<path>.*)")
# The uid of a static pod is a hash without dashes.
_POD = re.compile(rb"(?<![0-9a-z])pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-z])")
_CONTAINER = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_HYBRID_ORDER = (b"memory", b"name=systemd", b"")


@dataclass(frozen=True, slots=True)
class ContainerIdentity:
    """IDs as in the runtime and the API. Empty if the process is in no container, or in no pod."""

    container_id: str
    pod_uid: str


def parse_cgroup(text: bytes, *, source: str = "cgroup") -> ContainerIdentity:
    """Identify the container of a process from its cgroup paths, version 1, version 2 or both.

    Raises ProcFormatError for a line that is not `ID:CONTROLLERS:PATH`.
    """
    paths: dict[bytes, bytes] = {}
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise ProcFormatError(source, number, line, "`ID:CONTROLLERS:PATH`")
        for controller in match["controllers"].split(b","):
            paths[controller] = match["path"]
    identities = [_identify(paths[name]) for name in _HYBRID_ORDER if name in paths]
    return next((i for i in identities if i.container_id or i.pod_uid), ContainerIdentity("", ""))


def _identify(path: bytes) -> ContainerIdentity:
    """Return the innermost pod of the path and the container below it; without a pod, the innermost container."""
    pods = list(_POD.finditer(path))
    if not pods:
        containers = _CONTAINER.findall(path)
        return ContainerIdentity(containers[-1].decode() if containers else "", "")
    container = _CONTAINER.search(path, pods[-1].end())
    pod_uid = pods[-1][1].decode().replace("_", "-")
    return ContainerIdentity(container[0].decode() if container else "", pod_uid)
