"""Starts kopf: its settings, the sweep, and the health endpoint for the kubelet."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import kopf

from memdiag_api.diagnosis import GROUP
from memdiag_operator.cluster.client import (
    CONNECT_TIMEOUT_SECONDS,
    CONNECTIONS,
    DIAGNOSES_PAGE_SIZE,
    READ_TIMEOUT_SECONDS,
    KubernetesClient,
)
from memdiag_operator.cluster.cluster import Cluster
from memdiag_operator.config import OperatorConfig
from memdiag_operator.loop.reconciler import Reconciler
from memdiag_operator.loop.sweep import Sweep
from memdiag_operator.metrics import OperatorMetrics

# The API server ends a watch after this long, and kopf opens it again.
WATCH_SECONDS = 300
WATCH_CLIENT_SECONDS = WATCH_SECONDS + 30
# A watch that delivered nothing for this long is considered lost and opened again. The API server sends a bookmark
# every minute (bookmarkFrequency in its watch cache), so a working watch is never silent for that long.
WATCH_SILENCE_SECONDS = 70
# kopf has a task for each object that had an event. While the task waits for another event, it keeps the whole last one
# in memory; since it only passes events on, it does not need to wait.
WORKER_IDLE_SECONDS = 0.05
IDENTITY = "memdiag-operator"


@dataclass
class OperatorMemo:
    """What handlers share. kopf passes a shallow copy to each of them."""

    reconciler: Reconciler
    sweep: Sweep
    background: list[asyncio.Task[None]] = field(default_factory=list)


def operate(
    config: OperatorConfig, kubernetes: KubernetesClient, metrics: OperatorMetrics, *, liveness_endpoint: str
) -> None:
    """Run the operator until it is stopped by a signal.

    Pods are watched only in the runner namespace; diagnoses are cluster-scoped and watched everywhere.
    """
    asyncio.run(_operate(config, kubernetes, metrics, liveness_endpoint))


async def _operate(
    config: OperatorConfig, kubernetes: KubernetesClient, metrics: OperatorMetrics, liveness_endpoint: str
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CONNECTIONS, "kubernetes"))
    reconciler = Reconciler(Cluster(kubernetes, config), metrics)
    await kopf.operator(
        standalone=True,
        # By default, kopf looks up the user's name, which a numeric user does not have.
        identity=IDENTITY,  # type: ignore[arg-type] # a NewType of str that kopf does not export
        namespaces=[config.runner.namespace],
        liveness_endpoint=liveness_endpoint,
        memo=OperatorMemo(reconciler, Sweep(reconciler)),
    )


@kopf.on.login()
def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Log in with the service account in a pod, otherwise with KUBECONFIG, as the other client does."""
    inside = kopf.login_with_service_account(**kwargs)
    if inside:
        # kopf would resolve the API server by the cluster's DNS, which may be affected by a node's problems.
        return replace(inside, server=_api_server_address())
    return kopf.login_with_kubeconfig(**kwargs)


def _api_server_address() -> str:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: OperatorMemo, **_: Any) -> None:
    """Configure kopf and start the sweep."""
    configure(settings)
    memo.background.append(asyncio.create_task(memo.sweep.run(), name="sweep"))


def configure(settings: kopf.OperatorSettings) -> None:
    """Set what this operator relies on; everything else keeps kopf's default."""
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_CLIENT_SECONDS
    settings.watching.inactivity_timeout = WATCH_SILENCE_SECONDS
    settings.watching.chunk_size = DIAGNOSES_PAGE_SIZE
    settings.watching.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.request_timeout = READ_TIMEOUT_SECONDS
    settings.queueing.idle_timeout = WORKER_IDLE_SECONDS
    # CRDs are installed before the operator; scanning for new ones would need more rights.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    # Nothing here makes kopf write to an object; if that ever changes, it must use our own group.
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)


@kopf.on.cleanup()
async def stop(memo: OperatorMemo, **_: Any) -> None:
    """End the sweep; runner pods continue, and the next operator finds them."""
    for task in memo.background:
        task.cancel()
    await asyncio.gather(*memo.background, return_exceptions=True)
    await memo.reconciler.stop()


@kopf.on.probe(id="lastSweepAgeSeconds")
async def last_sweep_age(memo: OperatorMemo, **_: Any) -> int:
    """/healthz: the age of the last sweep; an error, and so a restart, if it is overdue."""
    if memo.sweep.is_overdue:
        raise kopf.PermanentError(f"the last sweep ended {memo.sweep.age_seconds:.0f} s ago")
    return int(memo.sweep.age_seconds)
