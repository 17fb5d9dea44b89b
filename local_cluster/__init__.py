"""A one-node Kubernetes cluster built from source, in its own namespaces: `python3 -m local_cluster --help`."""

import sys
from pathlib import Path

# `make` runs this package with Debian's Python, which does not have memdiag_api: use the checkout's.
sys.path.append(str(Path(__file__).resolve().parents[1] / "api"))
