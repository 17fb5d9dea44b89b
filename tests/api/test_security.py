"""Who may do what, tried with real tokens, and what the runner namespace lets in: the tables of docs/security.md.

`MEMDIAG_WRITE_DOCS=1 pytest tests/api/test_security.py` writes them again; else they are compared.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

import pytest
import yaml

from local_cluster.paths import PROJECT
from memdiag_api.capabilities import RUNNER_CAPABILITIES
from support.cluster import TestCluster
from support.hollow_node import eventually
from support.operator_process import kubeconfig_with_token
from support.operator_world import World, pod_of, sweep_away
from support.rights import CLUSTER, EVERYWHERE, Attempts, Resource, Rule, documented_rules, grouped, served_resources
from support.runner_manifest import IMAGE, runner_manifest

SYSTEM, RUNNERS = "memdiag-system", "memdiag-runners"
NAMESPACES = ("default", "kube-system", SYSTEM, RUNNERS)
PAGE = PROJECT / "docs/security.md"
RBAC = PROJECT / "manifests/base/rbac"

READ = {"get", "list", "watch"}
DIAGNOSES, REPORTS = "memorydiagnoses.memdiag.dev", "memorydiagnosisreports.memdiag.dev"
# Resource and place -> verbs. There must be no other of all that the API server serves.
RIGHTS: dict[str, dict[tuple[str, str], set[str]]] = {
    "memdiag-operator": {
        (DIAGNOSES, CLUSTER): READ | {"delete"},
        (f"{DIAGNOSES}/status", CLUSTER): {"update"},
        (REPORTS, CLUSTER): {"create", "get", "list", "deletecollection"},
        ("nodes", CLUSTER): {"get", "list"},
        ("pods", EVERYWHERE): {"list"},
        ("pods", RUNNERS): {"get", "watch", "create", "patch", "delete"},
        ("pods/log", RUNNERS): {"get"},
        ("events", RUNNERS): {"list"},
        ("events", "default"): {"create"},
    },
    "memdiag-runner": {},
    "memdiag-requester": {
        (DIAGNOSES, CLUSTER): READ | {"create", "update", "patch", "delete"},
        (REPORTS, CLUSTER): READ,
    },
    "memdiag-viewer": {(DIAGNOSES, CLUSTER): READ, (REPORTS, CLUSTER): READ},
}
HOMES = {"memdiag-operator": SYSTEM, "memdiag-runner": RUNNERS}
"""Namespaces of the service accounts that memdiag brings; the others are roles, which the test binds someone to."""


@pytest.fixture(scope="module")
def as_account(
    installed: TestCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], TestCluster]]:
    """The cluster as seen with the token of an account of RIGHTS, or of one that has no rights at all: `nobody`."""
    folder = tmp_path_factory.mktemp("tokens")
    people = [name for name in (*RIGHTS, "nobody") if name not in HOMES]
    for name in people:
        installed.kubectl("-n", "default", "create", "serviceaccount", name)
        if name != "nobody":
            bind = ("create", "clusterrolebinding", f"test-{name}", f"--clusterrole={name}")
            installed.kubectl(*bind, f"--serviceaccount=default:{name}")

    def account(name: str) -> TestCluster:
        path = kubeconfig_with_token(installed, HOMES.get(name, "default"), name, folder)
        return TestCluster(path, installed.kubectl_binary)

    yield account
    for name in people:
        installed.kubectl("-n", "default", "delete", "serviceaccount", name)
        installed.kubectl("delete", "clusterrolebinding", f"test-{name}", "--ignore-not-found")


@pytest.fixture(scope="module")
def resources(installed: TestCluster) -> list[Resource]:
    return served_resources(installed)


# --- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RIGHTS)
def test_of_every_verb_on_every_resource_only_the_needed_ones_are_not_refused(
    as_account: Callable[[str], TestCluster], resources: list[Resource], name: str
) -> None:
    attempts, nobody = (Attempts(as_account(who).kubeconfig) for who in (name, "nobody"))
    # What any token may do: ask for its own rights, and the like.
    common = nobody.rights(resources, NAMESPACES)
    granted = attempts.rights(resources, NAMESPACES) - common
    assert grouped(granted) == RIGHTS[name]
    assert attempts.count > 1000
    print(f"{name}: {attempts.count} requests tried, {len(granted)} rights, the rest refused as to anybody")


DANGERS = {
    "read Secrets": ("get", "secrets", SYSTEM),
    "list Secrets of all namespaces": ("list", "secrets", EVERYWHERE),
    "run a command in a runner": ("create", "pods/exec", RUNNERS),
    "attach to a runner": ("create", "pods/attach", RUNNERS),
    "add a container to a runner": ("patch", "pods/ephemeralcontainers", RUNNERS),
    "talk to a kubelet": ("get", "nodes/proxy", CLUSTER),
    "change a node": ("patch", "nodes", CLUSTER),
    "create pods elsewhere": ("create", "pods", "kube-system"),
    "read logs elsewhere": ("get", "pods/log", "kube-system"),
    "make tokens": ("create", "serviceaccounts/token", SYSTEM),
    "change roles": ("patch", "clusterroles.rbac.authorization.k8s.io", CLUSTER),
    "bind roles": ("create", "rolebindings.rbac.authorization.k8s.io", RUNNERS),
    "change the admission policy": ("patch", "validatingadmissionpolicies.admissionregistration.k8s.io", CLUSTER),
    "change the policy's parameters, and so the image": ("patch", "configmaps", RUNNERS),
    "change the operator's configuration": ("patch", "configmaps", SYSTEM),
    "change the operator": ("patch", "deployments.apps", SYSTEM),
    "change namespaces, and so Pod Security": ("patch", "namespaces", CLUSTER),
    "change the CRDs": ("patch", "customresourcedefinitions.apiextensions.k8s.io", CLUSTER),
    "forge a report": ("update", REPORTS, CLUSTER),
}
DANGERS_OF_PEOPLE = {
    "forge a status": ("update", f"{DIAGNOSES}/status", CLUSTER),
    "create a report": ("create", REPORTS, CLUSTER),
    "see runner pods": ("list", "pods", RUNNERS),
    "read a runner's log": ("get", "pods/log", RUNNERS),
    "delete a runner": ("delete", "pods", RUNNERS),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_what_would_be_dangerous_is_refused(
    as_account: Callable[[str], TestCluster], resources: list[Resource], name: str
) -> None:
    """The same by name, so that a resource which is not served any more is missed."""
    by_name = {one.full_name: one for one in resources}
    attempts = Attempts(as_account(name).kubeconfig)
    dangers = DANGERS if name == "memdiag-operator" else DANGERS | DANGERS_OF_PEOPLE
    answers = {
        what: attempts.status(by_name[resource], place, verb) for what, (verb, resource, place) in dangers.items()
    }
    assert answers == dict.fromkeys(dangers, HTTPStatus.FORBIDDEN)
    for header in ({"Impersonate-User": "admin"}, {"Impersonate-Group": "system:masters", "Impersonate-User": "x"}):
        assert attempts.request("GET", "/api/v1/nodes", header) == HTTPStatus.FORBIDDEN
    for path in ("/metrics", "/logs/", "/debug/pprof/"):
        assert attempts.request("GET", path) == HTTPStatus.FORBIDDEN


def rules() -> list[Rule]:
    return [rule for path in (RBAC / "operator.yaml", RBAC / "users.yaml") for rule in documented_rules(path)]


def test_every_rule_says_why() -> None:
    """A right without a reason beside it does not get in."""
    assert len(rules()) == 12
    for rule in rules():
        assert rule.reason, rule


def test_no_role_has_a_wildcard_or_secrets_or_is_aggregated(installed: TestCluster) -> None:
    kinds = "clusterroles,roles"
    items = json.loads(installed.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/part-of=memdiag", "-o", "json"))
    assert len(items["items"]) == 5
    for role in items["items"]:
        assert "*" not in json.dumps(role["rules"])
        assert "secrets" not in json.dumps(role["rules"])
        assert not any("aggregate-to" in label for label in role["metadata"]["labels"])


# --- the runner namespace ---------------------------------------------------------------------------------------------


def volumes(extra: dict[str, Any]) -> list[dict[str, Any]]:
    return [*runner_manifest()["spec"]["volumes"], {"name": "more", **extra}]


def security(**changes: Any) -> dict[str, Any]:
    return {"securityContext": {**runner_manifest()["spec"]["containers"][0]["securityContext"], **changes}}


def with_capability(name: str) -> dict[str, Any]:
    return runner_manifest(container=security(capabilities={"drop": ["ALL"], "add": [*RUNNER_CAPABILITIES, name]}))


HISTORY = {"name": "MEMDIAG_HISTORY", "value": "[]"}
SECOND = {"name": "second", "image": IMAGE, "command": ["memdiag-node"]}
# What a stolen token of the operator tries, and the words of the refusal.
STOLEN: dict[str, tuple[dict[str, Any], str]] = {
    "another image": (runner_manifest(container={"image": "evil/image:1"}), "must use the image"),
    "a second container with another image": (
        runner_manifest(containers=[*runner_manifest()["spec"]["containers"], SECOND | {"image": "evil/image:1"}]),
        "must use the image",
    ),
    "a second container with the right image": (
        runner_manifest(containers=[*runner_manifest()["spec"]["containers"], SECOND]),
        "a node runner must have one container",
    ),
    "an init container": (runner_manifest(initContainers=[SECOND]), "must use the image"),
    "a shell in the right image": (
        runner_manifest(container={"command": ["sh", "-c", "id"]}),
        "a node runner must have one container that runs memdiag-node",
    ),
    "the image's own entry point": (
        runner_manifest(container={"command": []}),
        "a node runner must have one container that runs memdiag-node",
    ),
    "a variable (LD_PRELOAD, PYTHONPATH)": (
        runner_manifest(container={"env": [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}]}),
        "without variables, hooks or probes",
    ),
    "a variable beside the history": (
        runner_manifest(container={"env": [HISTORY, {"name": "PYTHONPATH", "value": "/tmp"}]}),
        "without variables, hooks or probes",
    ),
    "a history that is read from a Secret": (
        runner_manifest(
            container={
                "env": [
                    {"name": HISTORY["name"], "valueFrom": {"secretKeyRef": {"name": "any", "key": "any"}}},
                ]
            }
        ),
        "without variables, hooks or probes",
    ),
    "a hook": (
        runner_manifest(container={"lifecycle": {"postStart": {"exec": {"command": ["sh"]}}}}),
        "without variables, hooks or probes",
    ),
    "a probe that runs a command": (
        runner_manifest(container={"livenessProbe": {"exec": {"command": ["sh"]}}}),
        "without variables, hooks or probes",
    ),
    "another service account": (
        runner_manifest(serviceAccountName="default"),
        "a node runner must use the service account memdiag-runner",
    ),
    "the service account's token": (runner_manifest(automountServiceAccountToken=True), "and must not mount its token"),
    "the host's network": (runner_manifest(hostNetwork=True), "but not its network, IPC or paths"),
    "the host's IPC": (runner_manifest(hostIPC=True), "but not its network, IPC or paths"),
    "the host's root": (
        runner_manifest(volumes=volumes({"hostPath": {"path": "/"}})),
        "but not its network, IPC or paths",
    ),
    "a path of the host, to read": (
        runner_manifest(volumes=volumes({"hostPath": {"path": "/sys/kernel/tracing", "type": "Directory"}})),
        "but not its network, IPC or paths",
    ),
    "a Secret": (
        runner_manifest(volumes=volumes({"secret": {"secretName": "s"}})),
        "but not its network, IPC or paths",
    ),
    "a projected token": (
        runner_manifest(volumes=volumes({"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}})),
        "but not its network, IPC or paths",
    ),
    "a privileged container": (
        runner_manifest(container={"securityContext": {"privileged": True}}),
        "must drop all capabilities except",
    ),
    **{
        name: (with_capability(name), "must drop all capabilities except")
        for name in ("SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_ADMIN")
    },
    "the runtime's default capabilities as well": (
        runner_manifest(container=security(capabilities={"add": list(RUNNER_CAPABILITIES)})),
        "must drop all capabilities except",
    ),
    "no seccomp profile": (
        runner_manifest(container=security(seccompProfile={"type": "Unconfined"})),
        "use the runtime's seccomp profile",
    ),
    "no security context": (runner_manifest(container={"securityContext": {}}), "must drop all capabilities except"),
    "another runtime": (runner_manifest(runtimeClassName="other"), "must use the node's default runtime"),
}
# What others with all rights try, as Kubernetes' own controllers do for them.
OTHERS = {
    "an admin creates a pod": "admin",
    "a Deployment's pod (ReplicaSet controller)": "system:serviceaccount:kube-system:replicaset-controller",
    "a Job's pod (Job controller)": "system:serviceaccount:kube-system:job-controller",
    "a DaemonSet's pod (DaemonSet controller)": "system:serviceaccount:kube-system:daemon-set-controller",
    "the runner's own service account": f"system:serviceaccount:{RUNNERS}:memdiag-runner",
    "the operator's name in another namespace": "system:serviceaccount:default:memdiag-operator",
}


def create(cluster: TestCluster, manifest: dict[str, Any], *options: str) -> str:
    """What the API server says to a pod in the runner namespace."""
    command = ("-n", RUNNERS, "create", "--dry-run=server", "-f", "-", *options)
    return cluster.try_kubectl(*command, input=json.dumps(manifest)).stderr


OTHER_RUNTIME = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "other"},
    "handler": "other",
}


@pytest.fixture(scope="module")
def guarded(installed: TestCluster) -> Iterator[TestCluster]:
    """The admission policies take effect a moment after they were applied. There is a second runtime to ask for."""
    eventually(lambda: "only the memdiag operator" in create(installed, runner_manifest()))
    eventually(lambda: "commands cannot be run" in run_in(installed, NO_POD, "exec"))
    installed.kubectl("create", "-f", "-", input=json.dumps(OTHER_RUNTIME))
    yield installed
    installed.kubectl("delete", "runtimeclass", "other")


@pytest.fixture(scope="module")
def operator(as_account: Callable[[str], TestCluster]) -> TestCluster:
    return as_account("memdiag-operator")


def test_the_operators_own_pods_are_let_in(guarded: TestCluster, operator: TestCluster) -> None:
    del guarded
    assert create(operator, runner_manifest()) == ""


@pytest.mark.parametrize("attempt", STOLEN)
def test_a_stolen_token_of_the_operator_runs_nothing_but_the_runner(
    guarded: TestCluster, operator: TestCluster, attempt: str
) -> None:
    del guarded
    manifest, said = STOLEN[attempt]
    assert said in create(operator, manifest)


@pytest.mark.parametrize("attempt", OTHERS)
def test_nobody_else_creates_a_pod_among_the_runners(guarded: TestCluster, attempt: str) -> None:
    user = OTHERS[attempt]
    options = () if user == "admin" else (f"--as={user}", "--as-group=system:masters")
    assert f"only the memdiag operator may create pods in {RUNNERS}, not {user}" in create(
        guarded, runner_manifest(), *options
    )


NO_POD = "no-such-pod"
EXCHANGED = "the image of a running node runner cannot be changed"


def run_in(cluster: TestCluster, pod: str, how: str) -> str:
    return cluster.try_kubectl(
        "create", "--raw", f"/api/v1/namespaces/{RUNNERS}/pods/{pod}/{how}?command=sh&stdout=true", "-f", "/dev/null"
    ).stderr


@pytest.fixture
def started(guarded: TestCluster, operator: TestCluster) -> Iterator[str]:
    """A runner pod that is there."""
    name = "target"
    operator.kubectl("-n", RUNNERS, "create", "-f", "-", input=json.dumps(runner_manifest(name)))
    yield name
    guarded.kubectl("-n", RUNNERS, "delete", "pod", name, "--force", "--grace-period=0")


@pytest.mark.parametrize("who", ["admin", "operator"])
def test_a_runners_image_cannot_be_exchanged(
    guarded: TestCluster, operator: TestCluster, started: str, who: str
) -> None:
    cluster = {"admin": guarded, "operator": operator}[who]
    patch = json.dumps({"spec": {"containers": [{"name": "node-runner", "image": "evil/image:1"}]}})
    assert EXCHANGED in cluster.try_kubectl("-n", RUNNERS, "patch", "pod", started, "-p", patch).stderr


def test_nothing_is_added_to_a_runner_not_even_by_an_admin(guarded: TestCluster, started: str) -> None:
    body = json.dumps({"spec": {"ephemeralContainers": [{"name": "debug", "image": IMAGE}]}})
    patch = ("patch", "pod", started, "--subresource=ephemeralcontainers", "-p", body)
    assert "containers cannot be added to a running node runner" in guarded.try_kubectl("-n", RUNNERS, *patch).stderr


def test_nobody_runs_a_command_in_a_runner_not_even_an_admin(guarded: TestCluster, started: str) -> None:
    for how in ("exec", "attach"):
        assert "commands cannot be run in a node runner" in run_in(guarded, started, how)


def test_the_operator_may_shorten_a_runners_time(operator: TestCluster, started: str) -> None:
    operator.kubectl("-n", RUNNERS, "patch", "pod", started, "-p", '{"spec": {"activeDeadlineSeconds": 1}}')


def test_a_runner_of_a_former_image_is_ended_after_an_upgrade(
    guarded: TestCluster, operator: TestCluster, started: str
) -> None:
    """Its image is not the policy's any more: it can be ended, and its image cannot be exchanged for the new one."""
    patch = ("-n", RUNNERS, "patch", "configmap", "memdiag-runner-image", "--type=merge", "-p")
    guarded.kubectl(*patch, '{"data": {"image": "memdiag.dev/node-runner:next"}}')
    try:
        eventually(lambda: "must use the image memdiag.dev/node-runner:next" in create(operator, runner_manifest()))
        operator.kubectl("-n", RUNNERS, "patch", "pod", started, "-p", '{"spec": {"activeDeadlineSeconds": 1}}')
        other = {"spec": {"containers": [{"name": "node-runner", "image": "memdiag.dev/node-runner:next"}]}}
        refused = operator.try_kubectl("-n", RUNNERS, "patch", "pod", started, "-p", json.dumps(other))
        assert EXCHANGED in refused.stderr
    finally:
        guarded.kubectl(*patch, json.dumps({"data": {"image": IMAGE}}))
        eventually(lambda: create(operator, runner_manifest()) == "")


def test_an_admin_may_still_look_label_and_delete(guarded: TestCluster, started: str) -> None:
    guarded.kubectl("-n", RUNNERS, "label", "pod", started, "seen=yes")
    guarded.kubectl("-n", RUNNERS, "delete", "pod", started, "--dry-run=server")


def test_the_policy_lets_in_privileged_runners_only_when_its_parameters_say_so(
    guarded: TestCluster, operator: TestCluster
) -> None:
    """runner.privileged and runner.serviceAccountName of the operator's configuration have a counterpart there."""
    privileged = runner_manifest(container={"securityContext": {"privileged": True}}, serviceAccountName="other")
    patch = ("-n", RUNNERS, "patch", "configmap", "memdiag-runner-image", "--type=merge", "-p")
    guarded.kubectl(*patch, '{"data": {"privileged": "true", "serviceAccountName": "other"}}')
    guarded.kubectl("-n", RUNNERS, "create", "serviceaccount", "other")
    try:
        eventually(lambda: create(operator, privileged) == "")
        assert "must use the image" in create(operator, runner_manifest(container={"image": "evil/image:1"}))
    finally:
        guarded.kubectl(*patch, '{"data": {"privileged": null, "serviceAccountName": null}}')
        guarded.kubectl("-n", RUNNERS, "delete", "serviceaccount", "other")
        eventually(lambda: "must drop all capabilities except" in create(operator, STOLEN["a privileged container"][0]))


def test_the_policy_lets_in_a_tag_only_when_its_parameters_say_so(guarded: TestCluster, operator: TestCluster) -> None:
    """The overlay that is installed here is for images without a registry; that of a release is not."""
    assert create(operator, runner_manifest()) == ""
    patch = ("-n", RUNNERS, "patch", "configmap", "memdiag-runner-image", "--type=merge", "-p")
    by_digest = f"registry.example.com/node-runner@sha256:{hashlib.sha256(b'an image').hexdigest()}"
    try:
        guarded.kubectl(*patch, '{"data": {"allowTags": null}}')
        eventually(lambda: "must have a digest (NAME@sha256:...)" in create(operator, runner_manifest()))
        guarded.kubectl(*patch, json.dumps({"data": {"image": by_digest}}))
        eventually(lambda: create(operator, runner_manifest(container={"image": by_digest})) == "")
    finally:
        overlay = str(PROJECT / "manifests/overlays/embedded")
        guarded.kubectl("apply", "--server-side", "--force-conflicts", "-k", overlay)
        eventually(lambda: create(operator, runner_manifest()) == "")


@pytest.mark.parametrize("overlay", ["release", "embedded"])
def test_the_policy_and_the_operator_have_the_same_image(overlay: str) -> None:
    folder = PROJECT / "manifests/overlays" / overlay
    runner = yaml.safe_load((folder / "operator.yaml").read_text())["runner"]
    generators = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    (literals,) = [one["literals"] for one in generators if one["name"] == "memdiag-runner-image"]
    parameters = dict(literal.split("=", 1) for literal in literals)
    assert parameters["image"] == runner["image"]
    assert parameters.get("allowTags") == {True: "true", None: None}[runner.get("allowTags")]


def test_the_operators_own_namespace_is_restricted_and_its_pod_fits_in(installed: TestCluster) -> None:
    deployment = json.loads(installed.kubectl("-n", SYSTEM, "get", "deployment", "memdiag-operator", "-o", "json"))
    template = deployment["spec"]["template"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try"}, "spec": template["spec"]}
    installed.kubectl("-n", SYSTEM, "create", "--dry-run=server", "-f", "-", input=json.dumps(body))
    bad = json.loads(json.dumps(body))
    bad["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = installed.try_kubectl("-n", SYSTEM, "create", "--dry-run=server", "-f", "-", input=json.dumps(bad))
    assert 'violates PodSecurity "restricted' in refused.stderr


def test_each_namespace_says_which_pods_it_may_run(installed: TestCluster) -> None:
    for namespace, level in ((SYSTEM, "restricted"), (RUNNERS, "privileged")):
        labels = json.loads(installed.kubectl("get", "namespace", namespace, "-o", "json"))["metadata"]["labels"]
        for mode in ("enforce", "audit", "warn"):
            assert labels[f"pod-security.kubernetes.io/{mode}"] == level


# --- what a requester can put into a request --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(shared: World) -> Iterator[World]:
    """The tests ask about one diagnosis after the other, and leave what they asked for to the end."""
    yield shared
    sweep_away(shared.cluster)


# Everything that a pod may have, wherever it might be looked for; and the operator's own marks.
SMUGGLED: dict[str, Any] = {
    "image": "evil/image:1",
    "command": ["sh", "-c", "id"],
    "args": ["--output", "/etc/passwd"],
    "env": [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}],
    "hostNetwork": True,
    "hostIPC": True,
    "volumes": [{"name": "root", "hostPath": {"path": "/"}}],
    "serviceAccountName": "memdiag-operator",
    "securityContext": {"privileged": True},
    "nodeName": "another-node",
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "system-node-critical",
}
MARKS = {
    "memdiag.dev/node": "another-node",
    "memdiag.dev/run-id": "forged",
    "memdiag.dev/diagnosis-uid": "forged",
    "app.kubernetes.io/component": "node-runner",
}


def shape(pod: dict[str, Any]) -> dict[str, Any]:
    """A runner's spec without what differs from run to run, and the node that it is for."""
    run = pod["metadata"]["labels"]["memdiag.dev/run-id"]
    spec = json.loads(json.dumps(pod["spec"]).replace(run, "RUN"))
    spec.pop("activeDeadlineSeconds")
    return {**spec, "for": pod["metadata"]["annotations"]["memdiag.dev/node"]}


def test_a_requester_has_no_say_in_what_the_runner_is(world: World, as_account: Callable[[str], TestCluster]) -> None:
    requester, node = as_account("memdiag-requester"), world.node("node-a")
    target = {"nodeName": node.name}
    honest: dict[str, Any] = {
        "apiVersion": "memdiag.dev/v1alpha1",
        "kind": "MemoryDiagnosis",
        "metadata": {"name": "honest"},
        "spec": {"target": target},
    }
    hostile = {
        **honest,
        **SMUGGLED,
        "metadata": {"name": "hostile", "labels": MARKS, "annotations": MARKS},
        "spec": {**SMUGGLED, "target": target, "runner": SMUGGLED, "template": {"spec": SMUGGLED}},
        "status": {"runID": "forged", "startTime": "2026-01-01T00:00:00Z", "results": [{"nodeName": "another-node"}]},
    }
    shapes = []
    for manifest in (honest, hostile):
        requester.kubectl("create", "--validate=false", "-f", "-", input=json.dumps(manifest))
        name = node.runner()
        shapes.append(shape(pod_of(world, name)))
        assert world.read(manifest["metadata"]["name"])["status"]["runID"] != "forged"
        world.cluster.kubectl("delete", "memdiag", manifest["metadata"]["name"])
        # The operator may have removed it already, as it does with what a deleted diagnosis leaves.
        world.cluster.kubectl("-n", RUNNERS, "delete", "pod", name, "--force", "--grace-period=0", "--ignore-not-found")
    assert shapes[0] == shapes[1]
    assert "evil" not in json.dumps(shapes[1])


def test_what_a_requester_writes_is_one_word_of_the_command_line(
    world: World, as_account: Callable[[str], TestCluster]
) -> None:
    """No shell is between, and the CRD accepts no word that starts with a dash."""
    requester = as_account("memdiag-requester")
    for field, value in (("nodeName", "--output=x"), ("nodeName", "a;id"), ("nodeName", "a\nb")):
        document = {
            "apiVersion": "memdiag.dev/v1alpha1",
            "kind": "MemoryDiagnosis",
            "metadata": {"name": "hostile"},
            "spec": {"target": {field: value}},
        }
        assert requester.try_kubectl("create", "-f", "-", input=json.dumps(document)).returncode != 0
    for duration in ("--help", "60s --output x", "$(id)"):
        document["spec"] = {"target": {"nodeName": "a"}, "duration": duration}
        assert requester.try_kubectl("create", "-f", "-", input=json.dumps(document)).returncode != 0
    assert world.pods() == []


# --- docs/security.md -------------------------------------------------------------------------------------------------


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(header)
    lines = [f"| {' | '.join(line)} |" for line in [columns, *map(list, rows)]]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]]) + "\n"


def code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def tables() -> dict[str, str]:
    """By the name of the place in the page."""
    return {
        "rights": table(
            ("who", "may", "on", "where", "why"),
            (
                (f"`{one.role}`", ", ".join(one.verbs), code(one.resources), _where(one), one.reason.rstrip("."))
                for one in rules()
            ),
        ),
        "dangers": table(
            ("refused to", "", "request"),
            (
                (who, what, f"`{verb} {resource}`, {place if place in (CLUSTER, EVERYWHERE) else f'`{place}`'}")
                for who, dangers in (("everyone of memdiag", DANGERS), ("people and runners", DANGERS_OF_PEOPLE))
                for what, (verb, resource, place) in dangers.items()
            ),
        ),
        "admission": table(
            ("who tries", "what", "answer"),
            (
                *(("the operator's token", what, f"…{said}…") for what, (_, said) in STOLEN.items()),
                *(("others", what, "only the memdiag operator may create pods") for what in OTHERS),
                ("anyone, an admin too", "exchange a runner's image", EXCHANGED),
                ("anyone, an admin too", "`kubectl debug`", "containers cannot be added to a running node runner"),
                ("anyone, an admin too", "`kubectl exec`, `kubectl attach`", "commands cannot be run in a node runner"),
            ),
        ),
    }


def _where(rule: Rule) -> str:
    if rule.resources == ("pods",) and rule.place == CLUSTER:
        return EVERYWHERE
    return rule.place if rule.place == CLUSTER else f"`{rule.place}`"


def test_the_page_about_security_has_these_tables() -> None:
    text = PAGE.read_text()
    for name, lines in tables().items():
        begin, end = f"<!-- {name}: written by tests/api/test_security.py -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        stands, _, after = rest.partition(end)
        assert after, f"{PAGE.name} has no place for the table of {name}"
        if os.environ.get("MEMDIAG_WRITE_DOCS"):
            text = f"{before}{begin}{lines}{end}{after}"
        else:
            assert stands == lines, f"{PAGE.name} has another table of {name}"
    if os.environ.get("MEMDIAG_WRITE_DOCS"):
        PAGE.write_text(text)
