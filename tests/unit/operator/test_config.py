"""The configuration is understood as a whole or refused with every place that is wrong."""

from pathlib import Path

import pytest

from memdiag_operator.config import DEFAULT_TOLERATIONS, ConfigError, Settings, load_config, parse_config
from support.kubernetes_objects import IMAGE

PROJECT = Path(__file__).parents[3]


def test_an_image_is_enough() -> None:
    config = parse_config(f"runner: {{image: '{IMAGE}'}}")
    assert config.runner.image == IMAGE
    assert config.runner.namespace == "memdiag-runners"
    assert config.runner.tolerations == DEFAULT_TOLERATIONS
    assert config.max_concurrent_runners == 3
    assert not config.runner.privileged


def test_the_embedded_overlay_brings_a_configuration_that_the_operator_takes() -> None:
    config = load_config(PROJECT / "manifests/overlays/embedded/operator.yaml")
    assert config.runner.image.startswith("memdiag.dev/node-runner:")
    assert config.runner.allow_tags


def test_the_release_overlay_is_refused_until_the_images_digest_is_filled_in() -> None:
    text = (PROJECT / "manifests/overlays/release/operator.yaml").read_text()
    with pytest.raises(ConfigError, match="must be named by digest"):
        parse_config(text)
    filled_in = text.replace("sha256:REPLACE", IMAGE.partition("@")[2])
    assert parse_config(filled_in).runner.image == f"registry.example.com/memdiag/node-runner@{IMAGE.partition('@')[2]}"


@pytest.mark.parametrize("image", ["example/runner", "example/runner:1", "example/runner@sha256:12", f"{IMAGE}:1"])
def test_an_image_that_can_be_exchanged_is_refused_and_the_message_says_how_to_get_the_digest(image: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(f"runner: {{image: '{image}'}}", source="operator.yaml")
    assert f"operator.yaml: runner: Value error, image {image} must be named by digest" in str(caught.value)
    assert "docker inspect --format" in str(caught.value)
    assert "runner.allowTags" in str(caught.value)
    assert parse_config(f"runner: {{image: '{image}', allowTags: true}}").runner.image == image


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
            "allowedNodes.matchExpressions.0: Value error, In and NotIn require values",
            id="a list without values",
        ),
        pytest.param(
            "runner: {image: a}\nallowedNodes: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}",
            "allowedNodes.matchExpressions.0: Value error, In and NotIn require values",
            id="values without a list",
        ),
        pytest.param("runner: {image: a}\nkeepReportsOfRuns: 21", "keepReportsOfRuns: Input", id="too many runs"),
        pytest.param(
            "runner: {image: a}\nthresholds: {suspectMebibytes: 0}", "thresholds.suspectMebibytes: In", id="0"
        ),
        pytest.param("runner: {image: a}\nthresholds: {largeShare: 2}", "thresholds.largeShare: Input", id="a share"),
        pytest.param(
            "runner: {image: a}\nthresholds: {leakAgeSeconds: -1}", "thresholds.leakAgeSeconds: In", id="past"
        ),
        pytest.param(
            "runner: {image: a}\nthresholds: {exhaustionDays: .inf}", "thresholds.exhaustionDays: I", id="inf"
        ),
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
    shown = shown.replace("registry.example.com/memdiag/node-runner@sha256:REPLACE", IMAGE)
    default = parse_config(f"runner: {{image: '{IMAGE}'}}")
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
