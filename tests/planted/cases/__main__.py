"""`python -m planted.cases CASE [SECONDS]` plants one case, prints its truth as one line of JSON, holds it, and ends.

    python -m planted.cases unread_tcp 120

It holds it until SIGTERM or for SECONDS (120 if not given), whichever is first.
"""

import argparse
import dataclasses
import json
import signal
import sys
import time

from planted.cases import CASES, plant
from planted.cases.case import UnavailableError

EXIT_UNAVAILABLE = 3


def main() -> int:
    """Return the exit status: 0, or EXIT_UNAVAILABLE if this machine cannot hold the case."""
    parser = argparse.ArgumentParser(prog="planted.cases", description=__doc__)
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument("seconds", type=float, nargs="?", default=120)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with plant(options.case) as truth:
            print(json.dumps({"case": options.case, **dataclasses.asdict(truth)}), flush=True)
            time.sleep(options.seconds)
    except UnavailableError as error:
        print(f"{options.case}: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
