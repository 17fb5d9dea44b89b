"""The operator: runs a pod on the node that a MemoryDiagnosis names, and writes the pod's result to the status."""
