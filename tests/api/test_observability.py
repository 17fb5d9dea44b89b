"""What is seen from outside: metrics as Prometheus scrapes them, alerts, log lines, events."""

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from local_cluster import promtool
from local_cluster.paths import PROJECT
from support.cluster import TestCluster
from support.hollow_node import eventually
from support.operator_world import World, pod_of, run_id

COMPONENT = PROJECT / "manifests/components/prometheus"
ALERTS = yaml.safe_load((COMPONENT / "alerts.yaml").read_text())
ALERT_TESTS = PROJECT / "tests/fixtures/prometheus/alerts.test.yaml"


def values(text: str, name: str) -> dict[tuple[str, ...], float]:
    """The samples of that name, by their labels' values in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def check(promtool_command: list[str | Path], *, stdin: str = "") -> str:
    done = subprocess.run(promtool_command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_prometheus_sees_a_run_and_a_failure(world: World) -> None:
    before = world.operator.scrape()
    node = world.node("node-a")
    world.diagnose("counted", "node-a")
    world.run(node)
    world.end("counted")
    world.diagnose("lost", "no-such-node")
    world.end("lost")

    def grown(name: str, *labels: str) -> float:
        return values(world.operator.scrape(), name)[labels] - values(before, name)[labels]

    eventually(lambda: grown("memdiag_runs_total", "NodeNotFound", "failed") == 1)
    assert grown("memdiag_runs_total", "Completed", "succeeded") == 1
    assert grown("memdiag_runs_started_total") == 2
    assert grown("memdiag_run_duration_seconds_count", "succeeded") == 1
    assert grown("memdiag_verdicts_total", "PinnedByUnreadSocket") == 1
    assert grown("memdiag_node_results_total", "NodeNotFound") == 1
    assert grown("memdiag_reports_refused_total") == 0
    assert grown("memdiag_faults_total") == 0
    assert grown("memdiag_last_sweep_timestamp_seconds") >= 0
    requests = values(world.operator.scrape(), "memdiag_api_requests_total")
    assert requests["201", "pods", "create"] >= 1
    assert requests["200", "pods/log", "get"] >= 1
    assert requests["404", "nodes", "get"] >= 1


def test_slots_and_queue_are_seen(world: World) -> None:
    nodes = [world.node(f"node-{number}") for number in range(5)]
    for node in nodes:
        world.diagnose(f"of-{node.name}", node.name)
    eventually(lambda: len(world.pods()) == 3)

    def load() -> tuple[float, float, float]:
        text = world.operator.scrape()
        gauges = ("memdiag_runner_slots_used", "memdiag_runner_slots_limit", "memdiag_queue_length")
        used, limit, queue = (values(text, name)[()] for name in gauges)
        return used, limit, queue

    eventually(lambda: load() == (3, 3, 2))


def test_no_name_that_somebody_chose_becomes_a_label(world: World) -> None:
    node = world.node("a-node-of-mine")
    world.diagnose("my-diagnosis", node.name)
    world.run(node)
    world.end("my-diagnosis")
    text = world.operator.scrape()
    for name in ("a-node-of-mine", "my-diagnosis", "nginx"):
        assert name not in text
    assert len([line for line in text.splitlines() if not line.startswith("#")]) < 300


def test_names_and_types_are_as_prometheus_wants_them(world: World, promtool_binary: Path) -> None:
    said = check([promtool_binary, "check", "metrics", "--extended"], stdin=world.operator.scrape())
    assert "memdiag_runs_total" in said


# --- alerts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def promtool_binary() -> Path:
    return promtool.provide()


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The PrometheusRule as a rule file of Prometheus itself."""
    path = tmp_path / "alerts.yaml"
    path.write_text(yaml.safe_dump(ALERTS["spec"]))
    return path


def test_the_alert_rules_are_well_formed(promtool_binary: Path, rules: Path) -> None:
    said = check([promtool_binary, "check", "rules", "--lint=all", "--lint-fatal", rules])
    assert f"{len(ALERTS['spec']['groups'][0]['rules'])} rules found" in said


def test_each_alert_fires_when_it_should_and_not_before(promtool_binary: Path, rules: Path) -> None:
    shutil.copy(ALERT_TESTS, rules.parent)
    check([promtool_binary, "test", "rules", rules.parent / ALERT_TESTS.name])
    tested = {
        case["alertname"]
        for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert tested == {rule["alert"] for group in ALERTS["spec"]["groups"] for rule in group["rules"]}


def test_every_metric_and_label_of_an_alert_is_there_to_be_scraped(world: World) -> None:
    text = world.operator.scrape()
    expressions = " ".join(rule["expr"] for group in ALERTS["spec"]["groups"] for rule in group["rules"])
    names = set(re.findall(r"memdiag_\w+", expressions))
    assert names
    for name in names:
        assert values(text, name), name
    reasons = {reason for reason, _ in values(text, "memdiag_runs_total")}
    excepted = set("|".join(re.findall(r'reason!~"([\w|]+)"', expressions)).split("|"))
    assert "LeakFound" in excepted
    assert excepted <= reasons


# --- manifests --------------------------------------------------------------------------------------------------------


def built(cluster: TestCluster, folder: Path) -> dict[tuple[str, str], Any]:
    documents = yaml.safe_load_all(cluster.kubectl("kustomize", str(folder)))
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def test_the_component_adds_the_monitor_and_the_alerts_and_base_has_neither(installed: TestCluster) -> None:
    plain = built(installed, PROJECT / "manifests/overlays/release")
    assert not {kind for kind, _ in plain} & {"ServiceMonitor", "PrometheusRule"}
    overlay = PROJECT / "manifests/overlays/.monitored"
    overlay.mkdir()
    try:
        document = {"resources": ["../release"], "components": ["../../components/prometheus"]}
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))
        monitored = built(installed, overlay)
    finally:
        shutil.rmtree(overlay)
    assert monitored.keys() - plain.keys() == {
        ("ServiceMonitor", "memdiag-operator"),
        ("PrometheusRule", "memdiag-operator"),
    }
    monitor = monitored["ServiceMonitor", "memdiag-operator"]
    service = plain["Service", "memdiag-operator"]
    assert monitor["metadata"]["namespace"] == service["metadata"]["namespace"] == "memdiag-system"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = [one for one in service["spec"]["ports"] if one["name"] == endpoint["port"]]
    pod = plain["Deployment", "memdiag-operator"]["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    ports = {one["name"]: one["containerPort"] for one in pod["spec"]["containers"][0]["ports"]}
    assert ports[port["targetPort"]] == port["port"] == 8081


def test_the_network_policy_lets_in_scrapes_and_the_kubelet_and_nobody_else(installed: TestCluster) -> None:
    plain = built(installed, PROJECT / "manifests/overlays/release")
    policy = plain["NetworkPolicy", "memdiag-operator"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    pod = plain["Deployment", "memdiag-operator"]["spec"]["template"]
    assert ports == {one["name"] for one in pod["spec"]["containers"][0]["ports"]}
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


# --- the log ----------------------------------------------------------------------------------------------------------


def test_every_line_about_a_run_carries_its_id(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("one-run", "node-a")
    runner = node.runner()
    run = run_id(pod_of(world, runner))
    world.run(node)
    world.end("one-run")
    eventually(lambda: world.pods() == [])

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in world.operator.log.splitlines()]

    found = [line for line in lines() if "one-run" in line["message"] or runner in line["message"]]
    assert {line.get("runID") for line in found} == {run}
    assert {line.get("diagnosis") for line in found} == {"one-run"}
    text = "\n".join(line["message"] for line in found)
    places = [text.find(step) for step in ("Started", "is Pending", "is Running", "is Completed")]
    assert -1 not in places, text
    assert places == sorted(places), text
    assert 0 <= text.find(f"created runner pod memdiag-runners/{runner}") < text.find("is Running"), text
    for line in lines():
        assert {"message", "timestamp", "severity"} <= line.keys()


# --- kubectl describe -------------------------------------------------------------------------------------------------


def test_describe_shows_the_events_of_a_run_in_order(world: World) -> None:
    node = world.node("node-a")
    world.diagnose("story", node.name, failOn="LeakDetected")
    runner = node.runner()
    node.run(runner)
    eventually(lambda: world.condition("story")[1] == "Running")
    world.deliver(node, runner)
    world.end("story")
    eventually(lambda: len(world.events("story")) == 4)
    text = world.cluster.kubectl("describe", "memdiag", "story")
    answer, _, events = text.partition("\nEvents:\n")
    rows = [line.split(maxsplit=4) for line in events.splitlines()[2:] if line.strip()]
    assert [(row[0], row[1]) for row in rows] == [
        ("Normal", "Started"),
        ("Normal", "Running"),
        ("Warning", "LeakFound"),
        ("Warning", "PinnedByUnreadSocket"),
    ]
    assert rows[1][4] == f"Runner pod {runner} is running on node node-a."
    assert "Find out why it does not read, and restart or fix it." in rows[3][4]
    # right above the events, where a reader's eye is
    last = [line.split(":")[0].strip() for line in answer.splitlines()[-5:]]
    assert "Summary" in last
    assert "Suspect" in last
    for line, below in pairwise(answer.splitlines()):
        is_heading = line.endswith(":")
        assert not is_heading or indent(below) > indent(line), f"nothing below {line!r}"


def indent(line: str) -> int:
    return len(line) - len(line.lstrip())
