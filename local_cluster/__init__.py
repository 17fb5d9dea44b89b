"""A one-node Kubernetes cluster from source, in namespaces of its own: `python3 -m local_cluster --help`."""
