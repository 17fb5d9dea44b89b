"""The parts of Kubernetes objects that matter here, and their names, labels and quantities."""
