"""Reports every request to the API server and its status code to an observer, in one place.

kopf's own requests, its watches, are not included.
"""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes import client
from kubernetes.client.exceptions import ApiException

NO_ANSWER = "none"
"""The status code of a request without a response."""

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


RequestObserver = Callable[[str, str, str], None]
"""Called with verb, resource and status code, in RBAC's terms and without names: `get`, `pods/log`, `200`."""


def ignore(_verb: str, _resource: str, _code: str) -> None:
    """The observer that counts nothing."""


class ObservedApiClient(client.ApiClient):
    """The official client, which calls `observe` for every request; used by many threads."""

    def __init__(self, configuration: client.Configuration, observe: RequestObserver) -> None:
        super().__init__(configuration)
        self._observe = observe

    def call_api(self, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
        """Send one request, see `client.ApiClient`."""
        code = NO_ANSWER
        try:
            response = super().call_api(method, url, *args, **kwargs)
            code = str(response.status)
        except ApiException as error:
            code = str(error.status or NO_ANSWER)
            raise
        finally:
            self._observe(*classify(method, url), code)
        return response


def classify(method: str, url: str) -> tuple[str, str]:
    """Verb and resource of a request, as RBAC names them.

    Source: Kubernetes, apiserver/pkg/endpoints/request/requestinfo.go.
    """
    parts = urlsplit(url)
    # /api/v1/... or /apis/GROUP/VERSION/..., then perhaps namespaces/NAME/, then RESOURCE[/NAME[/SUBRESOURCE]]
    root, *path = parts.path.strip("/").split("/")
    path = path[1:] if root == "api" else path[2:]
    if path[:1] == ["namespaces"] and len(path) > 2:  # noqa: PLR2004 - more than a namespace itself
        path = path[2:]
    resource, name, subresource = (*path, "", "", "")[:3]
    if method != "GET":
        verb = _VERBS.get(method, method.lower())
    elif name:
        verb = "get"
    else:
        verb = "watch" if parse_qs(parts.query).get("watch") in (["true"], ["True"], ["1"]) else "list"
    return verb, f"{resource}/{subresource}" if subresource else resource
