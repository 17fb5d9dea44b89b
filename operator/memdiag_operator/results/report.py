"""The report of one node: the manifest of the MemoryDiagnosisReport with its whole evidence."""

import json
from collections.abc import Iterable
from typing import Any

from memdiag_api.diagnosis import API_VERSION
from memdiag_api.evidence import Evidence
from memdiag_api.limits import MAX_NAMED_CONTAINERS
from memdiag_api.report import MemoryDiagnosisReport
from memdiag_operator.kube import naming
from memdiag_operator.kube.objects import ObjectMeta
from memdiag_operator.results.attribution import Attribution


def report(
    evidence: Evidence, attribution: Attribution, *, diagnosis: ObjectMeta, run: str, node_name: str, suspect: str
) -> dict[str, Any]:
    """The manifest of the MemoryDiagnosisReport with all of `evidence`; it has the name of the runner pod."""
    name = naming.child_name(diagnosis.name, diagnosis.uid, run, node_name)
    body = MemoryDiagnosisReport(
        diagnosis=diagnosis.name,
        run_id=run,
        node_name=node_name,
        pod_name=name,
        suspect=suspect,
        containers=attribution.identities(_container_ids(evidence))[:MAX_NAMED_CONTAINERS],
        evidence=evidence,
    )
    manifest: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": MemoryDiagnosisReport.KIND,
        "metadata": {
            "name": name,
            "labels": {
                naming.MANAGED_BY_LABEL: naming.MANAGED_BY,
                naming.DIAGNOSIS_UID_LABEL: diagnosis.uid,
                naming.RUN_ID_LABEL: run,
            },
            "ownerReferences": [naming.owner_reference(diagnosis)],
        },
        **body.to_json_object(),
    }
    manifest["metadata"]["annotations"] = {
        naming.NODE_ANNOTATION: node_name,
        naming.SIZE_ANNOTATION: str(size_of(manifest)),
    }
    return manifest


def size_of(manifest: dict[str, Any]) -> int:
    """The size of a report in etcd, which stores custom resources as JSON."""
    return len(json.dumps(manifest, separators=(",", ":")).encode())


def _container_ids(evidence: Evidence) -> Iterable[str]:
    """Those of the most important parts first: there may be more than a report names."""
    yield from (finding.owner.container_id for finding in evidence.findings if finding.owner)
    yield from (kill.container_id for kill in evidence.oom_kills)
    yield from (account.container_id for account in evidence.containers)
    yield from (part.owner.container_id for owners in evidence.owners for part in owners.owners)
    yield from (share.container_id for share in (evidence.ledger.containers if evidence.ledger else ()))
    yield from (owner.container_id for holder in evidence.holders for owner in holder.owners)
    yield from (process.container_id for stack in evidence.stacks for process in stack.processes)
