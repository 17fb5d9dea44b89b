"""Quantities as Kubernetes writes them."""

import pytest

from memdiag_operator.kube.quantities import parse_byte_quantity


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("128974848", 128974848),
        ("129e6", 129_000_000),
        ("129M", 129_000_000),
        ("123Mi", 123 * 1024**2),
        ("24579124Ki", 24579124 * 1024),
        ("1.5Gi", 1536 * 1024**2),
        ("16E", 16 * 10**18),
        ("2500m", 2),
        ("1E3", 1000),
    ],
)
def test_bytes(text: str, size_bytes: int) -> None:
    assert parse_byte_quantity(text) == size_bytes


@pytest.mark.parametrize("text", ["", "Gi", "1 Gi", "1KiB", "-1", "1e", "one", "1Gi\n", "\u0661Gi"])
def test_other_text_is_not_a_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a Kubernetes quantity"):
        parse_byte_quantity(text)
