"""What the operator relies on in kopf is set, not left to its defaults."""

import dataclasses
import re

import kopf

from local_cluster.paths import PROJECT
from memdiag_operator.handlers.runtime import configure


def test_a_silent_watch_is_reopened_after_the_documented_time() -> None:
    promised = re.search(r"silent for (\d+) seconds", (PROJECT / "docs/reliability.md").read_text())
    assert promised
    settings = kopf.OperatorSettings()
    settings.watching.inactivity_timeout = 1.0
    configure(settings)
    assert settings.watching.inactivity_timeout == float(promised[1])


def test_every_setting_is_one_that_kopf_has() -> None:
    """A dataclass takes any attribute: one that kopf renames would be set to no effect."""
    settings = kopf.OperatorSettings()
    configure(settings)
    for group in dataclasses.fields(settings):
        values = getattr(settings, group.name)
        assert set(vars(values)) <= {field.name for field in dataclasses.fields(values)}, group.name
