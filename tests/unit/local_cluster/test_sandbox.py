"""The addresses of clusters that run side by side."""

import ipaddress
import itertools

import pytest

from local_cluster.cluster import Cluster
from local_cluster.sandbox import SLOTS, Network
from local_cluster.steps import StepError


def test_no_two_slots_share_an_address_or_an_interface() -> None:
    networks = [Network(slot) for slot in range(SLOTS)]
    assert len({network.machine_interface for network in networks}) == SLOTS
    assert not any(one.subnet.overlaps(other.subnet) for one, other in itertools.pairwise(networks))


def test_both_ends_are_in_the_subnet_which_is_nobodys_real_network() -> None:
    network = Network(SLOTS - 1)
    ends = {ipaddress.IPv4Address(network.node_address), ipaddress.IPv4Address(network.machine_address)}
    assert len(ends) == 2
    assert all(end in network.subnet for end in ends)
    assert network.subnet.subnet_of(ipaddress.IPv4Network("198.18.0.0/15"))  # RFC 2544


def test_the_interface_name_fits_the_kernels_limit() -> None:
    assert len(Network(SLOTS - 1).machine_interface) <= 15  # IFNAMSIZ - 1


@pytest.mark.parametrize("name", ["", "UPPER", "../x", "a/b", "-a", "a-", "a" * 33, "a b"])
def test_a_name_that_is_not_a_file_and_cgroup_name_is_refused(name: str) -> None:
    with pytest.raises(StepError, match="is not a valid cluster name"):
        Cluster(name)
