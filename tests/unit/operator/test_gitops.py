"""Argo CD's and Flux's judgement of recorded objects (the api tier asks the same of live ones), and of odd ones."""

from copy import deepcopy
from typing import Any

import pytest
from lupa.lua51 import LuaError

from support.gitops import argo_health, argo_rerun, flux_status
from support.phases import JUDGEMENTS, recorded

DONE = recorded("done, no leak")


@pytest.mark.parametrize("phase", JUDGEMENTS)
def test_argo_cd_and_flux_judge_recorded_objects(phase: str) -> None:
    expected = JUDGEMENTS[phase]
    status, message = argo_health(recorded(phase))
    assert (status, flux_status(recorded(phase))) == (expected.argo, expected.flux)
    assert expected.message in message


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    """A finished diagnosis with parts of its metadata, spec or status replaced; None takes one away."""
    item = deepcopy(DONE)
    for part, values in parts.items():
        item[part] |= values
        item[part] = {key: value for key, value in item[part].items() if value is not None}
    return item


ODD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no status": ({key: value for key, value in DONE.items() if key != "status"}, "Progressing", ""),
    "no conditions": (changed(status={"conditions": None}), "Progressing", "InProgress"),
    "empty conditions": (changed(status={"conditions": []}), "Progressing", "InProgress"),
    "no annotation": (changed(metadata={"annotations": None}), "Healthy", "Current"),
    "other annotations": (changed(metadata={"annotations": {"a": "b"}}), "Healthy", "Current"),
    "an empty request": (changed(metadata={"annotations": {"memdiag.dev/requestedAt": ""}}), "Healthy", "Current"),
    "a request that the run answered": (
        changed(metadata={"annotations": {"memdiag.dev/requestedAt": "1"}}, status={"lastHandledRequest": "1"}),
        "Healthy",
        "Current",
    ),
    "a newer request than the run answered": (
        changed(metadata={"annotations": {"memdiag.dev/requestedAt": "2"}}, status={"lastHandledRequest": "1"}),
        "Progressing",
        "InProgress",
    ),
    "a request that a run before the last one answered": (
        changed(
            metadata={"annotations": {"memdiag.dev/requestedAt": "1"}},
            status={"lastHandledRequest": "2", "handledRequests": ["2", "1"]},
        ),
        "Healthy",
        "Current",
    ),
    "a request that no run has answered": (
        changed(
            metadata={"annotations": {"memdiag.dev/requestedAt": "3"}},
            status={"lastHandledRequest": "2", "handledRequests": ["2", "1"]},
        ),
        "Progressing",
        "InProgress",
    ),
    "a request taken back": (changed(status={"lastHandledRequest": "1"}), "Healthy", "Current"),
}


@pytest.mark.parametrize(("item", "argo", "flux"), ODD.values(), ids=ODD.keys())
def test_odd_objects_are_judged_too(item: dict[str, Any], argo: str, flux: str) -> None:
    assert argo_health(item)[0] == argo
    if flux:  # the API server fills in a status, without which Flux's expressions cannot be asked
        assert flux_status(item) == flux


def test_the_action_changes_nothing_but_the_request() -> None:
    asked = argo_rerun(DONE)
    request = asked["metadata"]["annotations"].pop("memdiag.dev/requestedAt")
    assert request.endswith("Z")
    assert asked["spec"] == DONE["spec"]
    again = argo_rerun(changed(metadata={"annotations": {"memdiag.dev/requestedAt": "old", "kept": "yes"}}))
    assert again["metadata"]["annotations"]["kept"] == "yes"
    assert again["metadata"]["annotations"]["memdiag.dev/requestedAt"] != "old"


@pytest.mark.parametrize("expression", ["string.rep", "io.open", "math.huge", "os.date", '("a").rep', 'require("io")'])
def test_the_scripts_get_no_more_of_lua_than_argo_cd_gives(expression: str) -> None:
    with pytest.raises(LuaError):
        argo_health(DONE, script=f'return {{ status = "Healthy", message = {expression} }}')


def test_the_scripts_get_what_argo_cd_gives() -> None:
    script = 'return { status = "Healthy", message = require("os").date("!%Y") .. table.concat({ "x" }) }'
    assert argo_health(DONE, script=script)[1].endswith("x")
