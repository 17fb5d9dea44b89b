"""What comes from the API server: lists with unusual items, and errors by kind."""

import json
import logging

import pytest
import urllib3
from kubernetes.client.exceptions import ApiException

from memdiag_operator.cluster.client import DiagnosisList, PartialObjectList, PodList
from memdiag_operator.cluster.errors import (
    AlreadyExistsError,
    ClusterError,
    ConflictError,
    NotFoundError,
    RefusedError,
    UnavailableError,
    translated,
)


def test_a_diagnosis_of_a_later_version_does_not_hide_the_others(caplog: pytest.LogCaptureFixture) -> None:
    good = {"metadata": {"name": "good"}, "spec": {"target": {"nodeName": "n"}}}
    later = {**good, "metadata": {"name": "later"}, "status": {"observedGeneration": {"not": "a number"}}}
    with caplog.at_level(logging.WARNING):
        page = DiagnosisList.model_validate_json(json.dumps({"metadata": {"continue": "x"}, "items": [later, good]}))
    assert [one.metadata.name for one in page.items] == ["good"]
    assert page.metadata.continue_ == "x"
    assert "ignoring MemoryDiagnosis later" in caplog.text


def test_a_list_of_metadata_may_have_null_for_no_items() -> None:
    """As kube-apiserver answers when there are no reports."""
    page = PartialObjectList.model_validate_json('{"metadata": {"resourceVersion": "7"}, "items": null}')
    assert page.items == ()
    assert page.metadata.resource_version == "7"


def test_fields_that_nobody_reads_are_not_kept() -> None:
    item = {"metadata": {"name": "a", "managedFields": ["x" * 1000]}, "spec": {"containers": [{}]}}
    page = PodList.model_validate_json(json.dumps({"items": [item]}))
    assert "x" * 10 not in page.model_dump_json()


def status(reason: str, message: str) -> str:
    return json.dumps({"kind": "Status", "reason": reason, "message": message})


@pytest.mark.parametrize(
    ("code", "body", "kind", "text"),
    [
        (404, status("NotFound", 'nodes "a" not found'), NotFoundError, 'cannot read node a: nodes "a" not found'),
        (409, status("Conflict", "the object has been modified"), ConflictError, "has been modified"),
        (409, status("AlreadyExists", "pods a already exists"), AlreadyExistsError, "already exists"),
        (403, status("Forbidden", "exceeded quota"), RefusedError, "exceeded quota"),
        (422, status("Invalid", "spec.x: wrong"), RefusedError, "spec.x: wrong"),
        (429, status("TooManyRequests", "slow down"), UnavailableError, "slow down .*429"),
        (500, status("InternalError", "etcd"), UnavailableError, "etcd .*500"),
        (503, "<html>busy</html>", UnavailableError, "503 Reason"),
        (502, "[]", UnavailableError, "502 Reason"),
        (404, "", NotFoundError, "404 Reason"),
    ],
)
def test_errors_are_distinguished_by_how_to_handle_them(
    code: int, body: str, kind: type[ClusterError], text: str
) -> None:
    error = ApiException(status=code, reason="Reason")
    error.body = body
    with pytest.raises(kind, match=text), translated("read node a"):
        raise error


@pytest.mark.parametrize("error", [urllib3.exceptions.HTTPError("reset"), TimeoutError("late"), ConnectionError("no")])
def test_no_answer_is_unavailable(error: Exception) -> None:
    with pytest.raises(UnavailableError, match="cannot list pods"), translated("list pods"):
        raise error
