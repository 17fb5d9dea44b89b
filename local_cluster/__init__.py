"""A one-node Kubernetes cluster from source, in namespaces of its own: `python3 -m local_cluster --help`."""

import sys
from pathlib import Path

# `make` runs this package with Debian's Python, where memdiag_api is not installed: take it from the checkout.
sys.path.append(str(Path(__file__).resolve().parents[1] / "api"))
