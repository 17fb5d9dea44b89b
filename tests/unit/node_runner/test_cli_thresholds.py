"""The options of `memdiag-node` for the thresholds: what is taken, and what is refused with a reason."""

import pytest

from memdiag_node import cli
from memdiag_node.findings.thresholds import DAY_SECONDS, MIB, Thresholds


def thresholds(*arguments: str) -> Thresholds:
    return cli._thresholds(cli._parser().parse_args(arguments))


def test_without_options_the_defaults_count() -> None:
    assert thresholds() == Thresholds()


def test_each_option_sets_its_threshold() -> None:
    assert thresholds("--notable-mib", "8", "--notable-share", "0").notable_bytes(1 << 40) == 8 * MIB
    assert thresholds("--exhaustion-days", "0.5").exhaustion_seconds == DAY_SECONDS / 2
    assert thresholds("--object-growth-kib-per-minute", "2048").object_growth_bytes(90) == 3 * MIB
    found = thresholds("--stuck-seconds", "2", "--leak-age-seconds", "3.5", "--slow-drain-seconds", "4")
    assert (found.stuck_floor_seconds, found.leak_age_seconds, found.slow_drain_seconds) == (2, 3.5, 4)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *((option, "0", "whole number of MiB from 1") for option in ("--suspect-mib", "--notable-mib", "--large-mib")),
        ("--object-growth-kib-per-minute", "0", "whole number of KiB from 1"),
        ("--suspect-mib", "1.5", "whole number of MiB from 1"),
        ("--suspect-mib", "9" * 30, "whole number of MiB from 1"),
        *((f"--{name}-share", "1.5", "share from 0 to 1") for name in ("suspect", "notable", "large")),
        ("--suspect-share", "-0.1", "share from 0 to 1"),
        ("--suspect-share", "nan", "share from 0 to 1"),
        ("--large-share", "2%", "share from 0 to 1"),
        *(
            (f"--{name}", value, "number above 0")
            for name in ("stuck-seconds", "leak-age-seconds", "slow-drain-seconds", "exhaustion-days")
            for value in ("0", "-1", "inf", "nan", "10s", "1e30")
        ),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_the_reason(
    option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        thresholds(f"{option}={value}")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"argument {option}: {value!r} is not a {said}" in error
