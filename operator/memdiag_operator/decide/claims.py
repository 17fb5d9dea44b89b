"""What one diagnosis wants of the cluster, reduced to what decisions about all diagnoses need."""

import sys
from dataclasses import replace

from memdiag_api.conditions import ConditionType, Reason
from memdiag_operator.decide.fleet import Claim
from memdiag_operator.decide.lifecycle import is_settled, starts_run
from memdiag_operator.kube.objects import Diagnosis, InvalidSpec
from memdiag_operator.status.states import UNSETTLED, run_states


def claim_of(diagnosis: Diagnosis) -> Claim:
    """The claim of `diagnosis`."""
    meta, spec, status = diagnosis.metadata, diagnosis.spec, diagnosis.status
    claim = Claim(
        uid=meta.uid,
        name=meta.name,
        created=meta.creation_timestamp,
        run_id=status.run_id or "",
        is_settled=is_settled(diagnosis),
        says_limit_reached=_says_limit_reached(diagnosis),
    )
    if meta.deletion_timestamp or isinstance(spec, InvalidSpec):
        return claim
    if starts_run(diagnosis):
        # A terminated one ends as soon as it has started: it takes no place from others.
        wanted = spec.target.max_nodes or 1
        selects = spec.target.node_selector is not None
        return replace(claim, wants_to_start=not spec.terminate, nodes_wanted=wanted, selects_nodes=selects)
    if diagnosis.is_finished or status.start_time is None:
        return claim
    unsettled = {name: state for name, state in run_states(diagnosis).items() if state.reason in UNSETTLED}
    under_way = replace(claim, is_under_way=True, unsettled_nodes=len(unsettled))
    if spec.suspend or spec.terminate:
        return under_way
    # Many diagnoses may be about the same nodes: each name is kept once.
    pending = (sys.intern(name) for name, state in unsettled.items() if state.reason == Reason.PENDING)
    return replace(
        under_way,
        waiting_since=status.start_time,
        pending={name: place for place, name in enumerate(pending)},
    )


def _says_limit_reached(diagnosis: Diagnosis) -> bool:
    if diagnosis.status.observed_generation != diagnosis.metadata.generation:
        return False
    return any(
        one.type is ConditionType.RECONCILING and one.reason is Reason.LIMIT_REACHED
        for one in diagnosis.status.conditions
    )
