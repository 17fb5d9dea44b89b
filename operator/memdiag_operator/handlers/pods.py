"""Events of runner pods: each triggers a reconcile of the diagnosis that the pod belongs to."""

from typing import Any

import kopf

from memdiag_operator.handlers.runtime import OperatorMemo
from memdiag_operator.kube.naming import RUNNER_LABELS
from memdiag_operator.kube.objects import Pod


@kopf.on.event("", "v1", "pods", labels=RUNNER_LABELS)
async def reconcile_owner(event: kopf.RawEvent, memo: OperatorMemo, **_: Any) -> None:
    """A runner pod was created, changed or deleted."""
    memo.reconciler.saw_pod(Pod.model_validate(event["object"]), deleted=event["type"] == "DELETED")
