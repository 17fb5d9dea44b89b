"""Write crds/*.yaml from the models in memdiag_api. `--check` only reports whether they are up to date."""

import argparse
import sys
from pathlib import Path

import yaml

from memdiag_api.crd import custom_resource_definitions

CRDS = Path(__file__).resolve().parent.parent / "crds"
HEADER = "# Generated from api/memdiag_api by `make crds`: change the models, not this file.\n"


def rendered() -> dict[Path, str]:
    """The text of every generated file."""
    return {
        CRDS / name: HEADER + yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True)
        for name, definition in custom_resource_definitions().items()
    }


def main() -> int:
    """Return 0 if the files match the models (after writing them, without --check)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    arguments = parser.parse_args()
    stale = [path for path, text in rendered().items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path.name} differs from the models: run `make crds`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(rendered()[path])
        print(f"wrote crds/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
