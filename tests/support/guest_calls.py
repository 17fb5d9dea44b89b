"""The guest's side of support.guest_lab: load kernel modules, call functions, write what they return.

Usage: python3 -m support.guest_calls RESULTS, with CALLS and MODULES where guest_lab has put them.
"""

import contextlib
import importlib
import json
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from planted.leaking_modules import load_module

SOURCE = Path("/source")
CALLS, MODULES = "calls.json", "modules"
BUILT = SOURCE / "built"
"""The folder with the modules that were built from sources."""


def main(results: Path) -> None:
    answers: dict[str, Any] = {}
    for name, module, function, arguments in json.loads((SOURCE / CALLS).read_text()):
        started = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            answer = getattr(importlib.import_module(module), function)(*arguments)
            answers[name] = {"answer": json.loads(json.dumps(answer))}
        except Exception:
            answers[name] = {"error": traceback.format_exc()}
            print(answers[name]["error"], flush=True)
        print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
    text = json.dumps(answers).encode()
    results.write_bytes(struct.pack("<Q", len(text)) + text)


def load_modules() -> None:
    """Load Debian's modules, which guest_lab has put in order."""
    for file in sorted((SOURCE / MODULES).iterdir()):
        with contextlib.suppress(FileExistsError):
            load_module(file)


if __name__ == "__main__":
    load_modules()
    main(Path(sys.argv[1]))
