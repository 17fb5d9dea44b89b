"""Objects that were stored under a released version are valid under this one, and no field was removed.

tests/fixtures/released contains the CustomResourceDefinitions of each released version.
"""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from memdiag_api.crd import custom_resource_definitions
from support.crd_compatibility import broken_promises

RELEASED = Path(__file__).parents[2] / "fixtures" / "released"
DEFINITIONS = sorted(RELEASED.glob("*/crds/*.yaml"))
# 0.1.0 rejected every object with one of these two, so none is stored.
NEVER_STORED = ("v1alpha1.spec.target.nodeSelector", "v1alpha1.spec.target.podRef")
DIAGNOSES = "memdiag.dev_memorydiagnoses.yaml"


def released(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: f"{path.parts[-3]}/{path.name}")
def test_a_released_definition_is_kept(path: Path) -> None:
    broken = broken_promises(released(path), custom_resource_definitions()[path.name])
    assert [one for one in broken if not one.startswith(NEVER_STORED)] == []


def test_0_1_0_rejected_the_fields_that_it_never_stored() -> None:
    rules = [rule["rule"] for rule in target(released(RELEASED / "0.1.0" / "crds" / DIAGNOSES))]
    assert "!has(self.nodeSelector) && !has(self.podRef)" in rules


def test_both_kinds_of_the_first_version_are_recorded() -> None:
    assert [path.name for path in DEFINITIONS if path.parts[-3] == "0.1.0"] == list(custom_resource_definitions())


def spec(definition: dict[str, Any]) -> Any:
    return schema(definition)["properties"]["spec"]


def target(definition: dict[str, Any]) -> Any:
    return spec(definition)["properties"]["target"]["x-kubernetes-validations"]


def schema(definition: dict[str, Any]) -> Any:
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def status(definition: dict[str, Any]) -> Any:
    return schema(definition)["properties"]["status"]["properties"]


# One incompatible change of each kind.
TAKING_AWAY: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a field": (lambda one: spec(one)["properties"].pop("topN"), "v1alpha1.spec.topN is gone"),
    "a field of a list's items": (
        lambda one: status(one)["results"]["items"]["properties"].pop("verdict"),
        "v1alpha1.status.results[].verdict is gone",
    ),
    "the freedom to leave out": (
        lambda one: spec(one)["required"].append("duration"),
        "v1alpha1.spec: duration is required now",
    ),
    "room above": (
        lambda one: spec(one)["properties"]["topN"].update(maximum=19),
        "v1alpha1.spec.topN: maximum was 20, is 19",
    ),
    "room below": (
        lambda one: spec(one)["properties"]["topN"].update(minimum=2),
        "v1alpha1.spec.topN: minimum was 1, is 2",
    ),
    "room in a list": (
        lambda one: status(one)["reportRefs"].update(maxItems=16),
        "v1alpha1.status.reportRefs: maxItems was 1000, is 16",
    ),
    "room where there was no bound": (
        lambda one: status(one)["observedGeneration"].update(maximum=9),
        "v1alpha1.status.observedGeneration: maximum was None, is 9",
    ),
    "a value": (
        lambda one: spec(one)["properties"]["failOn"]["enum"].remove("Never"),
        "v1alpha1.spec.failOn: enum has lost ['Never']",
    ),
    "values where any was allowed": (
        lambda one: status(one)["summary"].update(enum=["a"]),
        "v1alpha1.status.summary: enum has lost ['anything']",
    ),
    "what a text may look like": (
        lambda one: status(one)["summary"].update(pattern="^a"),
        "v1alpha1.status.summary: pattern was None, is ^a",
    ),
    "by a new rule": (
        lambda one: spec(one)["x-kubernetes-validations"].append({"rule": "has(self.topN)", "message": "?"}),
        "v1alpha1.spec: rule is new: has(self.topN)",
    ),
    "a default": (
        lambda one: spec(one)["properties"]["duration"].update(default="30s"),
        "v1alpha1.spec.duration: default was '60s', is '30s'",
    ),
    "a type": (
        lambda one: status(one)["summary"].update(type="integer"),
        "v1alpha1.status.summary: type was 'string', is 'integer'",
    ),
    "how lists are merged": (
        lambda one: status(one)["results"].pop("x-kubernetes-list-map-keys"),
        "v1alpha1.status.results: x-kubernetes-list-map-keys was ['nodeName'], is None",
    ),
    "the values of a map": (
        lambda one: spec(one)["properties"]["target"]["properties"]["nodeSelector"]["properties"]["matchLabels"].pop(
            "additionalProperties"
        ),
        "v1alpha1.spec.target.nodeSelector.matchLabels{} is gone",
    ),
    "a version": (lambda one: one["spec"]["versions"][0].update(served=False), "v1alpha1 is not served any more"),
    "the status subresource": (
        lambda one: one["spec"]["versions"][0].pop("subresources"),
        "v1alpha1: subresources differ",
    ),
    "a selectable field": (
        lambda one: one["spec"]["versions"][0]["selectableFields"].clear(),
        "v1alpha1: .spec.target.nodeName is not selectable any more",
    ),
    "a short name": (
        lambda one: one["spec"]["names"]["shortNames"].clear(),
        "names.shortNames lacks ['memdiag']",
    ),
    "its name": (
        lambda one: one["spec"]["names"].update(plural="diagnoses"),
        "names.plural was memorydiagnoses, is diagnoses",
    ),
    "its scope": (lambda one: one["spec"].update(scope="Namespaced"), "scope was Cluster, is Namespaced"),
}


@pytest.mark.parametrize(("take", "reported"), TAKING_AWAY.values(), ids=TAKING_AWAY.keys())
def test_an_incompatible_change_is_found(take: Callable[[dict[str, Any]], object], reported: str) -> None:
    old = released(RELEASED / "0.1.0" / "crds" / DIAGNOSES)
    new = deepcopy(old)
    take(new)
    assert broken_promises(old, new) == [reported]


GIVING: dict[str, Callable[[dict[str, Any]], object]] = {
    "a field": lambda one: spec(one)["properties"].update(more={"type": "string"}),
    "room": lambda one: spec(one)["properties"]["topN"].update(maximum=40, minimum=0),
    "a value": lambda one: spec(one)["properties"]["failOn"]["enum"].append("Always"),
    "fewer rules": lambda one: spec(one)["properties"]["target"].update({"x-kubernetes-validations": []}),
    "a description": lambda one: spec(one).update(description="Other words."),
    "a column": lambda one: one["spec"]["versions"][0]["additionalPrinterColumns"].clear(),
}


@pytest.mark.parametrize("give", GIVING.values(), ids=GIVING.keys())
def test_a_compatible_change_is_accepted(give: Callable[[dict[str, Any]], object]) -> None:
    old = released(RELEASED / "0.1.0" / "crds" / DIAGNOSES)
    new = deepcopy(old)
    give(new)
    assert broken_promises(old, new) == []
