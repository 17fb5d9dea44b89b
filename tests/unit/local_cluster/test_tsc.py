"""The TSC frequency that is passed to guests."""

import pytest

from local_cluster.tsc import frequency_khz


def test_the_counter_is_timed_to_a_thousandth_however_busy_the_machine_is() -> None:
    first = frequency_khz.__wrapped__()
    assert 500_000 < first < 10_000_000
    assert frequency_khz.__wrapped__() == pytest.approx(first, rel=0.001)
