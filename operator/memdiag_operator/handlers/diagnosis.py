"""Events of diagnoses.

`on.event` and not `on.create`, `on.update`, `on.resume`: those make kopf keep its own memory in annotations of the
object, which pipelines that apply manifests then fight over. Reconciling needs no memory, so every event will do.
"""

import logging
from typing import Any

import kopf
from pydantic import ValidationError

from memdiag_api.diagnosis import GROUP, VERSION, MemoryDiagnosis
from memdiag_operator.handlers.runtime import OperatorMemo
from memdiag_operator.kube.objects import Diagnosis

logger = logging.getLogger(__name__)


@kopf.on.event(GROUP, VERSION, MemoryDiagnosis.PLURAL)
async def reconcile_diagnosis(event: kopf.RawEvent, memo: OperatorMemo, **_: Any) -> None:
    """A diagnosis was created, changed or deleted, or is there as the operator starts."""
    try:
        diagnosis = Diagnosis.model_validate(event["object"])
    except ValidationError as error:
        name = event["object"].get("metadata", {}).get("name")
        logger.warning("ignoring MemoryDiagnosis %s: cannot parse it: %s", name, error)
        return
    memo.reconciler.saw_diagnosis(diagnosis, deleted=event["type"] == "DELETED")
