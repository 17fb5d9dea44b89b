"""The configuration is understood as a whole or refused with every place that is wrong."""

from pathlib import Path

import pytest

from memdiag_operator.config import DEFAULT_TOLERATIONS, ConfigError, Settings, load_config, parse_config

PROJECT = Path(__file__).parents[3]


def test_an_image_is_enough() -> None:
    config = parse_config("runner: {image: example/runner:1}")
    assert config.runner.image == "example/runner:1"
    assert config.runner.namespace == "memdiag-runners"
    assert config.runner.tolerations == DEFAULT_TOLERATIONS
    assert config.max_concurrent_runners == 3
    assert not config.runner.privileged


@pytest.mark.parametrize("overlay", ["release", "embedded"])
def test_the_overlays_bring_a_configuration_that_the_operator_takes(overlay: str) -> None:
    config = load_config(PROJECT / "manifests" / "overlays" / overlay / "operator.yaml")
    assert config.runner.image.startswith("memdiag.dev/node-runner:")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("", "must be a mapping", id="empty"),
        pytest.param("- a", "must be a mapping", id="a list"),
        pytest.param("a: [", "is not YAML", id="no YAML"),
        pytest.param("{}", "runner: Field required", id="no runner"),
        pytest.param("runner: {}", "runner.image: Field required", id="no image"),
        pytest.param("runner: {image: ''}", "runner.image: String should have at least 1", id="empty image"),
        pytest.param("runner: {image: a, privilege: true}", "runner.privilege: Extra inputs", id="unknown key"),
        pytest.param("runner: {image: a}\nmaxConcurrentRunners: 0", "maxConcurrentRunners: Input", id="no slots"),
        pytest.param("runner: {image: a}\nsweep: {idleSeconds: 0}", "sweep.idleSeconds: Input", id="no pause"),
        pytest.param("runner: {image: a, cpu: much}", "runner.cpu: String should match", id="no quantity"),
        pytest.param(
            "runner: {image: a}\nallowedNodes: {matchLabels: {'a b': c}}",
            "allowedNodes.matchLabels.a b.[key]: String should match",
            id="no label",
        ),
        pytest.param(
            "runner: {image: a}\nallowedNodes: {matchExpressions: [{key: a, operator: In}]}",
            "allowedNodes.matchExpressions.0: Value error, In and NotIn take values",
            id="a list without values",
        ),
        pytest.param(
            "runner: {image: a}\nallowedNodes: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "allowedNodes.matchExpressions.0: Value error, In and NotIn take values",
            id="values without a list",
        ),
        pytest.param("runner: {image: a}\nkeepReportsOfRuns: 21", "keepReportsOfRuns: Input", id="too many runs"),
        pytest.param("runner: {image: a, appArmorProfile: off}", "runner.appArmorProfile: Input", id="bad profile"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="operator.yaml")
    assert f"operator.yaml: {said}" in str(caught.value)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config("runner: {image: a, cpu: x}\nmaxConcurrentRunners: -1")
    assert "runner.cpu" in str(caught.value)
    assert "maxConcurrentRunners" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-file"):
        load_config(tmp_path / "no-such-file")


def test_the_page_on_configuration_shows_every_setting_with_its_default() -> None:
    page = (PROJECT / "docs" / "configuration.md").read_text()
    shown = page.split("```yaml\n")[1].split("```")[0]
    default = parse_config("runner: {image: memdiag.dev/node-runner:0.1.0}")
    assert parse_config(shown) == default
    missing = [name for name in setting_names(default) if f"{name}:" not in shown]
    assert missing == []


def setting_names(settings: Settings) -> list[str]:
    """Every setting, as it is written in the file."""
    names: list[str] = []
    for field, info in type(settings).model_fields.items():
        names.append(info.alias or field)
        value = getattr(settings, field)
        if isinstance(value, Settings):
            names += setting_names(value)
    return names
