"""memdiag-node with more time for finding the slabs: an emulated CPU is too slow to find all of them in the usual time.

Usage: python3 -m support.patient_runner ARGUMENTS.
"""

import sys

from memdiag_node import kernel_objects
from memdiag_node.cli import main

CENSUS_SECONDS = 200.0

if __name__ == "__main__":
    kernel_objects.CENSUS_SECONDS = CENSUS_SECONDS
    sys.exit(main())
