"""Events of diagnoses.

`on.event` instead of `on.create`, `on.update` and `on.resume`: with those, kopf keeps its state in annotations of the
object, and pipelines that apply manifests then conflict with it. Reconciling needs no such state, so any event will do.
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
    """A diagnosis was created, changed or deleted, or exists when the operator starts."""
    try:
        diagnosis = Diagnosis.model_validate(event["object"])
    except ValidationError as error:
        name = event["object"].get("metadata", {}).get("name")
        logger.warning("ignoring MemoryDiagnosis %s: cannot parse it: %s", name, error)
        return
    memo.reconciler.saw_diagnosis(diagnosis, deleted=event["type"] == "DELETED")
