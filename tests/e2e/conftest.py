"""The e2e tier runs on the embedded one-node cluster, which lives on this machine."""

import pytest

from support.cluster import cluster
from support.guest_boots import boot_meanwhile

__all__ = ["cluster"]


@pytest.fixture(scope="session")
def guests_boot_meanwhile(request: pytest.FixtureRequest) -> None:
    """For tests that mostly wait and do not measure the whole machine: the next tier's guests boot beside them."""
    boot_meanwhile(request)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that measure the whole machine before those beside which guests boot."""
    items.sort(key=lambda item: "guests_boot_meanwhile" in getattr(item, "fixturenames", ()))
