"""Events of runner pods: the diagnosis that a pod belongs to is looked at again."""

from typing import Any

import kopf

from memdiag_operator.decide.naming import DIAGNOSIS_ANNOTATION, RUNNER_LABELS
from memdiag_operator.handlers.runtime import OperatorMemo


@kopf.on.event("", "v1", "pods", labels=RUNNER_LABELS, annotations={DIAGNOSIS_ANNOTATION: kopf.PRESENT})
async def reconcile_owner(annotations: kopf.Annotations, memo: OperatorMemo, **_: Any) -> None:
    """A runner pod was created, changed or deleted."""
    await memo.reconciler.reconcile(annotations[DIAGNOSIS_ANNOTATION])
