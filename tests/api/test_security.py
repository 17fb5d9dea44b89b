"""Who may do what, asked with real tokens; and what the runner namespace lets in."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import (
    AuthorizationV1Api,
    V1ResourceAttributes,
    V1SelfSubjectAccessReview,
    V1SelfSubjectAccessReviewSpec,
)
from kubernetes.config import new_client_from_config

from local_cluster.paths import PROJECT
from support.cluster import TestCluster
from support.hollow_node import eventually

SYSTEM, RUNNERS = "memdiag-system", "memdiag-runners"
ALL_VERBS = ("get", "list", "watch", "create", "update", "patch", "delete")
READ = ("get", "list", "watch")

# resource, namespace ("" for cluster-scoped or all namespaces) -> verbs that the operator needs; it must have no other.
OPERATOR_RIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("memorydiagnoses.memdiag.dev", ""): (*READ, "delete"),
    ("memorydiagnoses.memdiag.dev/status", ""): ("update",),
    ("memorydiagnosisreports.memdiag.dev", ""): ("create",),
    ("nodes", ""): ("get", "list"),
    ("nodes/proxy", ""): (),
    ("pods", ""): ("list",),
    ("pods", "kube-system"): ("list",),
    ("pods", SYSTEM): ("list",),
    ("pods", RUNNERS): (*READ, "create", "patch", "delete"),
    ("pods/log", RUNNERS): ("get",),
    ("pods/log", "kube-system"): (),
    ("pods/exec", RUNNERS): (),
    ("pods/attach", RUNNERS): (),
    ("pods/ephemeralcontainers", RUNNERS): (),
    ("events", "default"): ("create",),
    ("secrets", ""): (),
    ("secrets", SYSTEM): (),
    ("secrets", RUNNERS): (),
    ("configmaps", SYSTEM): (),
    ("serviceaccounts/token", SYSTEM): (),
    ("serviceaccounts/token", RUNNERS): (),
    ("clusterroles.rbac.authorization.k8s.io", ""): (),
    ("rolebindings.rbac.authorization.k8s.io", RUNNERS): (),
    ("customresourcedefinitions.apiextensions.k8s.io", ""): (),
    ("validatingadmissionpolicies.admissionregistration.k8s.io", ""): (),
    ("deployments.apps", SYSTEM): (),
    ("namespaces", ""): (),
}
PEOPLE_RIGHTS: dict[str, dict[tuple[str, str], tuple[str, ...]]] = {
    "memdiag-requester": {
        ("memorydiagnoses.memdiag.dev", ""): ALL_VERBS,
        ("memorydiagnoses.memdiag.dev/status", ""): (),
        ("memorydiagnosisreports.memdiag.dev", ""): READ,
        ("pods", RUNNERS): (),
        ("pods/log", RUNNERS): (),
        ("configmaps", SYSTEM): (),
        ("secrets", ""): (),
    },
    "memdiag-viewer": {
        ("memorydiagnoses.memdiag.dev", ""): READ,
        ("memorydiagnoses.memdiag.dev/status", ""): (),
        ("memorydiagnosisreports.memdiag.dev", ""): READ,
        ("pods", RUNNERS): (),
        ("pods/log", RUNNERS): (),
        ("secrets", ""): (),
    },
}


def as_service_account(cluster: TestCluster, namespace: str, name: str, folder: Path) -> TestCluster:
    """The cluster as seen with the token of a service account."""
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    document["users"][0]["user"] = {"token": cluster.kubectl("-n", namespace, "create", "token", name).strip()}
    path = folder / f"{namespace}-{name}.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return TestCluster(path, cluster.kubectl_binary)


@pytest.fixture(scope="module")
def operator(installed: TestCluster, tmp_path_factory: pytest.TempPathFactory) -> TestCluster:
    return as_service_account(installed, SYSTEM, "memdiag-operator", tmp_path_factory.mktemp("operator"))


@pytest.fixture(scope="module", params=list(PEOPLE_RIGHTS))
def person(
    request: pytest.FixtureRequest, installed: TestCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TestCluster, str]]:
    """Someone who has been bound to one of the roles for people."""
    role = str(request.param)
    installed.kubectl("-n", "default", "create", "serviceaccount", role)
    installed.kubectl(
        "create", "clusterrolebinding", f"test-{role}", f"--clusterrole={role}", f"--serviceaccount=default:{role}"
    )
    yield as_service_account(installed, "default", role, tmp_path_factory.mktemp("person")), role
    installed.kubectl("delete", "clusterrolebinding", f"test-{role}")
    installed.kubectl("-n", "default", "delete", "serviceaccount", role)


def rights(cluster: TestCluster, resource: str, namespace: str) -> tuple[str, ...]:
    """The verbs that the holder of the token has."""
    resource, _, subresource = resource.partition("/")
    name, _, group = resource.partition(".")
    api = AuthorizationV1Api(new_client_from_config(str(cluster.kubeconfig)))  # type: ignore[no-untyped-call] # there

    def has(verb: str) -> bool:
        wanted = V1ResourceAttributes(
            group=group, resource=name, subresource=subresource, namespace=namespace, verb=verb
        )
        review = V1SelfSubjectAccessReview(spec=V1SelfSubjectAccessReviewSpec(resource_attributes=wanted))
        status = api.create_self_subject_access_review(review).status
        return bool(status and status.allowed)

    return tuple(verb for verb in ALL_VERBS if has(verb))


@pytest.mark.parametrize(("place", "verbs"), OPERATOR_RIGHTS.items(), ids=str)
def test_the_operator_may_do_what_it_needs_and_nothing_else(
    operator: TestCluster, place: tuple[str, str], verbs: tuple[str, ...]
) -> None:
    assert set(rights(operator, *place)) == set(verbs)


def test_people_may_do_what_their_role_says(person: tuple[TestCluster, str]) -> None:
    cluster, role = person
    found = {place: set(rights(cluster, *place)) for place in PEOPLE_RIGHTS[role]}
    assert found == {place: set(verbs) for place, verbs in PEOPLE_RIGHTS[role].items()}


def test_a_runner_may_do_nothing(installed: TestCluster, tmp_path: Path) -> None:
    runner = as_service_account(installed, RUNNERS, "memdiag-runner", tmp_path)
    for resource in ("pods", "secrets", "configmaps", "memorydiagnoses.memdiag.dev", "nodes"):
        assert rights(runner, resource, RUNNERS) == ()


def test_every_rule_says_why() -> None:
    """A right without a reason beside it does not get in."""
    text = (PROJECT / "manifests/base/rbac/operator.yaml").read_text()
    rules = re.findall(r"(?:^ *#.*\n)?^  - apiGroups:", text, re.MULTILINE)
    assert rules
    assert all(rule.lstrip().startswith("#") for rule in rules)


def test_no_role_has_a_wildcard_or_secrets_or_is_aggregated(installed: TestCluster) -> None:
    kinds = "clusterroles,roles"
    items = json.loads(installed.kubectl("get", kinds, "-A", "-l", "app.kubernetes.io/part-of=memdiag", "-o", "json"))
    assert len(items["items"]) == 5
    for role in items["items"]:
        assert "*" not in json.dumps(role["rules"])
        assert "secrets" not in json.dumps(role["rules"])
        assert not any("aggregate-to" in label for label in role["metadata"]["labels"])


# --- the runner namespace ---------------------------------------------------------------------------------------------


def pod(name: str, image: str = "memdiag.dev/node-runner:dev", **spec: Any) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "a", "image": image}], **spec},
    }
    return json.dumps(body)


def create(cluster: TestCluster, manifest: str) -> str:
    """What the API server says to a pod in the runner namespace."""
    return cluster.try_kubectl("-n", RUNNERS, "create", "--dry-run=server", "-f", "-", input=manifest).stderr


@pytest.fixture(scope="module")
def guarded(installed: TestCluster) -> TestCluster:
    """The admission policy takes effect a moment after it was applied."""
    eventually(lambda: "only the memdiag operator" in create(installed, pod("probe")))
    return installed


def test_not_even_an_admin_creates_pods_among_the_runners(guarded: TestCluster) -> None:
    said = create(guarded, pod("mine"))
    assert "only the memdiag operator may create pods in memdiag-runners, not admin" in said


def test_the_operator_creates_pods_with_the_runners_image_only(guarded: TestCluster, operator: TestCluster) -> None:
    del guarded
    assert create(operator, pod("right")) == ""
    wrong = create(operator, pod("wrong", image="evil/image:1"))
    assert "have no other image than memdiag.dev/node-runner:dev" in wrong
    sneaky = pod("sneaky", initContainers=[{"name": "b", "image": "memdiag.dev/node-runner:dev"}])
    assert "have no other image" in create(operator, sneaky)


def test_a_runners_image_cannot_be_exchanged_nor_a_container_be_added(
    guarded: TestCluster, operator: TestCluster
) -> None:
    operator.kubectl("-n", RUNNERS, "create", "-f", "-", input=pod("target"))
    try:
        patch = json.dumps({"spec": {"containers": [{"name": "a", "image": "evil/image:1"}]}})
        for cluster in (guarded, operator):
            said = cluster.try_kubectl("-n", RUNNERS, "patch", "pod", "target", "-p", patch).stderr
            assert "have no other image" in said
        body = json.dumps({"spec": {"ephemeralContainers": [{"name": "debug", "image": "evil/image:1"}]}})
        said = guarded.try_kubectl(
            "-n", RUNNERS, "patch", "pod", "target", "--subresource=ephemeralcontainers", "-p", body
        ).stderr
        assert "nothing is added to a running node runner" in said
    finally:
        guarded.kubectl("-n", RUNNERS, "delete", "pod", "target", "--force", "--grace-period=0")


@pytest.mark.parametrize("overlay", ["release", "embedded"])
def test_the_policy_lets_in_the_image_that_the_operator_uses(overlay: str) -> None:
    folder = PROJECT / "manifests/overlays" / overlay
    image = yaml.safe_load((folder / "operator.yaml").read_text())["runner"]["image"]
    assert f"[image={image}]" in (folder / "kustomization.yaml").read_text()


def test_the_operators_own_namespace_is_restricted_and_its_pod_fits_in(installed: TestCluster) -> None:
    deployment = json.loads(installed.kubectl("-n", SYSTEM, "get", "deployment", "memdiag-operator", "-o", "json"))
    template = deployment["spec"]["template"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "try"}, "spec": template["spec"]}
    installed.kubectl("-n", SYSTEM, "create", "--dry-run=server", "-f", "-", input=json.dumps(body))
    bad = json.loads(json.dumps(body))
    bad["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    refused = installed.try_kubectl("-n", SYSTEM, "create", "--dry-run=server", "-f", "-", input=json.dumps(bad))
    assert 'violates PodSecurity "restricted' in refused.stderr
