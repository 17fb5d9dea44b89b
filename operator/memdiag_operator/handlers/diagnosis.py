"""Events of diagnoses.

`on.event` and not `on.create`, `on.update`, `on.resume`: those make kopf keep its own memory in annotations of the
object, which pipelines that apply manifests then fight over. Reconciling needs no memory, so every event will do.
"""

from typing import Any

import kopf

from memdiag_api.diagnosis import GROUP, VERSION, MemoryDiagnosis
from memdiag_operator.handlers.runtime import OperatorMemo


@kopf.on.event(GROUP, VERSION, MemoryDiagnosis.PLURAL)
async def reconcile_diagnosis(name: str | None, type: str | None, memo: OperatorMemo, **_: Any) -> None:  # noqa: A002 - kopf's name
    """A diagnosis was created, changed, or is there as the operator starts."""
    if name and type != "DELETED":
        await memo.reconciler.reconcile(name)
