"""What can go wrong between the operator and the API server, told apart by what to do about it."""

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
    """The API server did not do what it was asked."""


class NotFoundError(ClusterError):
    """The object is not there (any more)."""


class ConflictError(ClusterError):
    """Someone else was faster: read again, decide again."""


class AlreadyExistsError(ClusterError):
    """An object of that name is there already."""


class RefusedError(ClusterError):
    """The request itself is refused; asking again does not help."""


class UnreadableError(ClusterError):
    """The object was stored by another version, which knows what this one does not."""


class OversizedError(ClusterError):
    """The answer is larger than the operator reads: asking again does not help."""


class UnavailableError(ClusterError):
    """No answer, or not now: the next sweep asks again."""


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn what the client raises into a ClusterError that says what was tried: `action`, as in "read node a"."""
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
    """Reason and message of a metav1.Status; a proxy on the way may have answered in its stead."""
    fallback = f"{error.status} {error.reason}"
    try:
        status = json.loads(error.body or "")
    except (ValueError, TypeError):
        return "", fallback
    if not isinstance(status, dict):
        return "", fallback
    return str(status.get("reason", "")), str(status.get("message") or fallback)
