"""The kernel tier: real eBPF on the machine's own kernel."""

from collections.abc import Iterator

import pytest

from memdiag_node.kernel.btf import Btf
from memdiag_node.sockets.scanner import SocketScanner
from planted.sockets.planter import Planter
from support.machine_noise import Noise, measure_alloc_page_noise


@pytest.fixture(scope="session")
def btf() -> Btf:
    return Btf.load()


@pytest.fixture(scope="module")
def scanner(btf: Btf) -> Iterator[SocketScanner]:
    with SocketScanner(btf=btf) as scanner:
        yield scanner


@pytest.fixture
def planter() -> Iterator[Planter]:
    with Planter() as child:
        yield child


@pytest.fixture(scope="module")
def noise_before(request: pytest.FixtureRequest) -> Noise:
    """The noise of the machine over the length of the module's window (WINDOW_SECONDS)."""
    return measure_alloc_page_noise(request.module.WINDOW_SECONDS)


@pytest.fixture(scope="module")
def noise(request: pytest.FixtureRequest, noise_before: Noise, evidence: object) -> Noise:
    """The noise of the machine before and after the window of the module's `evidence`."""
    assert evidence
    after = measure_alloc_page_noise(request.module.WINDOW_SECONDS)
    return max(noise_before, after, key=lambda noise: noise.moved_bytes)
