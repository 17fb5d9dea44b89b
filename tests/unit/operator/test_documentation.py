"""What users read about reasons is all of them, and nothing else."""

import re
from pathlib import Path

from memdiag_api.conditions import Reason

PAGE = Path(__file__).parents[3] / "docs" / "conditions.md"


def test_every_reason_is_documented_and_every_documented_reason_exists() -> None:
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    documented = {word for row in rows for word in re.findall(r"`([A-Z][A-Za-z]+)`", row)}
    conditions = {"Succeeded", "LeakDetected", "Reconciling", "Stalled"}
    assert documented - conditions == {reason.value for reason in Reason}
