"""Kubernetes objects as far as they matter here, and the names, labels and quantities in them."""
