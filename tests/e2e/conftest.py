"""The e2e tier runs on the embedded one-node cluster."""

from support.cluster import cluster

__all__ = ["cluster"]
