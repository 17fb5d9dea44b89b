"""Starts kopf: its settings, the sweep beside it, and the health that the kubelet asks for."""

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

# The API server ends a watch after this long, and it is opened again.
WATCH_SECONDS = 300
WATCH_CLIENT_SECONDS = WATCH_SECONDS + 30
# A watch that delivered nothing for this long is taken for lost and opened again. The API server sends a bookmark every
# minute (bookmarkFrequency in its watch cache), so a working one is never silent for so long.
WATCH_SILENCE_SECONDS = 70
# kopf has a task for each object that an event has come for. While it waits for another, it keeps the whole of the last
# one in memory; as it only hands events on, it need not wait.
WORKER_IDLE_SECONDS = 0.05
IDENTITY = "memdiag-operator"


@dataclass
class OperatorMemo:
    """What handlers share. kopf hands each of them a shallow copy."""

    reconciler: Reconciler
    sweep: Sweep
    background: list[asyncio.Task[None]] = field(default_factory=list)


def operate(
    config: OperatorConfig, kubernetes: KubernetesClient, metrics: OperatorMetrics, *, liveness_endpoint: str
) -> None:
    """Run the operator until it is told to stop.

    Pods are watched in the runner namespace alone; diagnoses are cluster-scoped and so are watched all the same.
    """
    asyncio.run(_operate(config, kubernetes, metrics, liveness_endpoint))


async def _operate(
    config: OperatorConfig, kubernetes: KubernetesClient, metrics: OperatorMetrics, liveness_endpoint: str
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CONNECTIONS, "kubernetes"))
    reconciler = Reconciler(Cluster(kubernetes, config), metrics)
    await kopf.operator(
        standalone=True,
        # Left to itself, kopf asks for the user's name, which a numeric user has not.
        identity=IDENTITY,  # type: ignore[arg-type] # a NewType of str that kopf keeps to itself
        namespaces=[config.runner.namespace],
        liveness_endpoint=liveness_endpoint,
        memo=OperatorMemo(reconciler, Sweep(reconciler)),
    )


@kopf.on.login()
def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """From inside a pod, else by KUBECONFIG: as the other client does."""
    inside = kopf.login_with_service_account(**kwargs)
    if inside:
        # kopf would ask the cluster's DNS for the API server, which may be in trouble together with a node.
        return replace(inside, server=_api_server_address())
    return kopf.login_with_kubeconfig(**kwargs)


def _api_server_address() -> str:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: OperatorMemo, **_: Any) -> None:
    """Set kopf up and start to sweep."""
    configure(settings)
    memo.background.append(asyncio.create_task(memo.sweep.run(), name="sweep"))


def configure(settings: kopf.OperatorSettings) -> None:
    """Set what this operator relies on; everything else stays kopf's default."""
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_CLIENT_SECONDS
    settings.watching.inactivity_timeout = WATCH_SILENCE_SECONDS
    settings.watching.chunk_size = DIAGNOSES_PAGE_SIZE
    settings.watching.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.connect_timeout = CONNECT_TIMEOUT_SECONDS
    settings.networking.request_timeout = READ_TIMEOUT_SECONDS
    settings.queueing.idle_timeout = WORKER_IDLE_SECONDS
    # CRDs come before the operator; to look out for new ones takes rights that it can do without.
    settings.scanning.disabled = True
    settings.posting.enabled = False
    # Nothing here makes kopf write to an object; should that ever change, it must be under our own name.
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)


@kopf.on.cleanup()
async def stop(memo: OperatorMemo, **_: Any) -> None:
    """End the sweep; runner pods go on, and the next operator finds them."""
    for task in memo.background:
        task.cancel()
    await asyncio.gather(*memo.background, return_exceptions=True)
    await memo.reconciler.stop()


@kopf.on.probe(id="lastSweepAgeSeconds")
async def last_sweep_age(memo: OperatorMemo, **_: Any) -> int:
    """/healthz: the age of the last sweep; an error, and so a restart, when it is overdue."""
    if memo.sweep.is_overdue:
        raise kopf.PermanentError(f"the last sweep ended {memo.sweep.age_seconds:.0f} s ago")
    return int(memo.sweep.age_seconds)
