"""The operator: puts a runner pod on the node that a MemoryDiagnosis names, and its answer into the status."""
