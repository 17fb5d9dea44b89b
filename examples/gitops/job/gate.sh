#!/bin/sh
# A gate for any pipeline: run the diagnosis of memdiag.yaml, wait for its end, fail if it fails.
# REQUEST is a text that this diagnosis has not had: the pipeline's run, or the pod's UID.
set -eu
manifest=${MANIFEST:-/gate/memdiag.yaml}
name=$(kubectl create --dry-run=client -f "$manifest" -o name)

# With the request in the manifest itself, a diagnosis that is new runs once and one that is there runs again.
kubectl annotate --local -f "$manifest" "memdiag.dev/requestedAt=$REQUEST" -o yaml | kubectl apply -f -

# First that it has begun: until then the status is about the run before.
kubectl wait "$name" --for=jsonpath='{.status.lastHandledRequest}'="$REQUEST" --timeout="${START_TIMEOUT:-15m}"
# Not --for=condition=Succeeded: that would wait for its whole timeout when the answer is False.
kubectl wait "$name" --for=condition=Reconciling=False --timeout="${RUN_TIMEOUT:-20m}"

kubectl get "$name" -o jsonpath='{.status.conditions[?(@.type=="Succeeded")].reason}: {.status.summary}{"\n"}'
kubectl wait "$name" --for=condition=Succeeded --timeout=0s
