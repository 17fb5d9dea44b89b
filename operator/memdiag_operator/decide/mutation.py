"""What admission webhooks have changed in a runner pod: an injected sidecar, a variable, another image.

Such a pod is not the one that was reviewed: it may see more, never end, or fail in other ways. What the API server
itself adds (defaults and a few tolerations) is not compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Json = Mapping[str, Any]

MAX_CHANGES = 4
# Fields of the pod's spec: its relation to the host and to other pods.
_POD_FIELDS = ("hostPID", "hostIPC", "hostNetwork", "shareProcessNamespace", "runtimeClassName", "serviceAccountName")
_CONTAINER_FIELDS = ("image", "command", "args", "workingDir")
_ADDED_TO_CONTAINER = ("env", "envFrom", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe")


def mutations(sent: Json, created: Json) -> str:
    """How the pod `created` differs from what was sent, in words; empty if nothing that matters differs."""
    changes = list(_changes(sent["spec"], created["spec"]))
    more = len(changes) - MAX_CHANGES
    return ", ".join(changes[:MAX_CHANGES]) + (f" and {more} more" if more > 0 else "")


def _changes(sent: Json, created: Json) -> Iterator[str]:
    for kind, what in (("containers", "container"), ("initContainers", "init container"), ("volumes", "volume")):
        yield from _added_or_gone(what, sent.get(kind) or [], created.get(kind) or [])
    for name in _POD_FIELDS:
        yield from _changed(name, sent.get(name), created.get(name))
    if bool(created.get("automountServiceAccountToken", True)) != sent.get("automountServiceAccountToken", True):
        yield "automountServiceAccountToken was changed"
    kept = _by_name(created.get("containers") or [])
    for container in sent["containers"]:
        if container["name"] in kept:
            yield from _container_changes(container, kept[container["name"]])


def _container_changes(sent: Json, created: Json) -> Iterator[str]:
    for name in _CONTAINER_FIELDS:
        yield from _changed(name, sent.get(name), created.get(name))
    for name in _ADDED_TO_CONTAINER:
        if added := _added(sent.get(name), created.get(name)):
            names = ", ".join(str(one.get("name", "")) for one in added if isinstance(one, dict))
            yield f"{name} was added" + (f" ({names})" if names else "")
    if not _contains(created.get("securityContext") or {}, sent.get("securityContext") or {}):
        yield "securityContext was changed"
    paths = {mount["mountPath"] for mount in sent.get("volumeMounts") or []}
    for mount in created.get("volumeMounts") or []:
        if mount["mountPath"] not in paths:
            yield f"a mount at {mount['mountPath']} was added"


def _added(sent: Any, created: Any) -> list[Any]:
    """What was added to a list, or the names of the fields of an object that was not sent."""
    if isinstance(created, list):
        return [one for one in created if one not in (sent or [])]
    return list(created or {}) if not sent else []


def _added_or_gone(what: str, sent: Sequence[Json], created: Sequence[Json]) -> Iterator[str]:
    before, after = _by_name(sent), _by_name(created)
    yield from (f"{what} {name} was added" for name in after if name not in before)
    yield from (f"{what} {name} was removed" for name in before if name not in after)


def _changed(name: str, sent: Any, created: Any) -> Iterator[str]:
    # The API server omits what is false or empty.
    if (sent or None) != (created or None):
        yield f"{name} is {created or 'not set'} instead of {sent or 'not set'}"


def _contains(created: Any, sent: Any) -> bool:
    """Whether `created` has all of `sent`, perhaps with additional defaults."""
    if isinstance(sent, Mapping):
        return isinstance(created, Mapping) and all(_contains(created.get(key), sent[key]) for key in sent)
    return bool((created or None) == (sent or None))


def _by_name(items: Sequence[Json]) -> dict[str, Json]:
    return {str(one["name"]): one for one in items}
