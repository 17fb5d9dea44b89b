"""What can go wrong between the operator and the API server, distinguished by how to handle it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

import urllib3
from kubernetes.client.exceptions import ApiException

_REFUSALS = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.METHOD_NOT_ALLOWED}
)


class ClusterError(Exception):
    """A request to the API server failed."""


class NotFoundError(ClusterError):
    """The object does not exist (any more)."""


class ConflictError(ClusterError):
    """The object has changed since it was read: read again, decide again."""


class AlreadyExistsError(ClusterError):
    """An object of that name already exists."""


class RefusedError(ClusterError):
    """The request itself is rejected: a retry does not help."""


class UnreadableError(ClusterError):
    """The object was stored by another version and cannot be parsed by this one."""


class OversizedError(ClusterError):
    """The response is larger than the operator reads: a retry does not help."""


class UnavailableError(ClusterError):
    """No response, or a temporary failure: the next sweep retries."""


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what the client raises into a ClusterError that names the attempted `action`, as in "read node a"."""
    try:
        yield
    except ApiException as error:
        raise _from_response(action, error) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(f"cannot {action}: {error}") from error


def _from_response(action: str, error: ApiException) -> ClusterError:
    reason, message = _status(error)
    text = f"cannot {action}: {message}"
    if error.status == HTTPStatus.NOT_FOUND:
        return NotFoundError(text)
    if error.status == HTTPStatus.CONFLICT:
        return AlreadyExistsError(text) if reason == "AlreadyExists" else ConflictError(text)
    if error.status in _REFUSALS:
        return RefusedError(message)
    return UnavailableError(f"{text} (HTTP {error.status})")


def _status(error: ApiException) -> tuple[str, str]:
    """Reason and message of a metav1.Status; a proxy may have responded instead of the API server."""
    fallback = f"{error.status} {error.reason}"
    try:
        status = json.loads(error.body or "")
    except (ValueError, TypeError):
        return "", fallback
    if not isinstance(status, dict):
        return "", fallback
    return str(status.get("reason", "")), str(status.get("message") or fallback)
