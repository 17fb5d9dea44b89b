#!/bin/sh
# A gate for any pipeline: run the diagnosis in memdiag.yaml, wait until it ends, fail if it fails.
# REQUEST is a text that was not used for this diagnosis before: the ID of the pipeline run, or the UID of the pod.
set -eu
manifest=${MANIFEST:-/gate/memdiag.yaml}
name=$(kubectl create --dry-run=client -f "$manifest" -o name)

# With the request in the manifest itself, a new diagnosis runs once and an existing one runs again.
kubectl annotate --local -f "$manifest" "memdiag.dev/requestedAt=$REQUEST" -o yaml | kubectl apply -f -

# First wait until it has started: until then the status is that of the previous run.
kubectl wait "$name" --for=jsonpath='{.status.lastHandledRequest}'="$REQUEST" --timeout="${START_TIMEOUT:-15m}"
# Not --for=condition=Succeeded: that would wait for its whole timeout if the condition is False.
kubectl wait "$name" --for=condition=Reconciling=False --timeout="${RUN_TIMEOUT:-20m}"

kubectl get "$name" -o jsonpath='{.status.conditions[?(@.type=="Succeeded")].reason}: {.status.summary}{"\n"}'
kubectl wait "$name" --for=condition=Succeeded --timeout=0s
