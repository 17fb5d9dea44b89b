"""In a guest: memory of several kinds that a kernel module allocates steadily, and one diagnosis while it grows.

tests/vm/test_object_trace.py judges the document.
"""

import json
from dataclasses import asdict
from typing import Any

from planted.leaking_modules import growing
from support.guest_calls import BUILT
from support.guest_program import runner

_WINDOW = "12s"
_RUNNER = "support.patient_runner"
"""The usual checks and settings; only the slabs may take longer to read."""


def diagnose_growth() -> dict[str, Any]:
    """What is planted, and the document of memdiag-node while it grows."""
    with growing(BUILT) as planted:
        run = runner("--duration", _WINDOW, "--output", "json", program=_RUNNER)
    document = json.loads(run["stdout"]) if run["stdout"] else None
    return {"planted": [asdict(one) for one in planted], "run": run | {"stdout": ""}, "document": document}
