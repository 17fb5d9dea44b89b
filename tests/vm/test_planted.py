"""The loads that only a guest can have, and the others, on each of Debian's kernels: planted and looked at there."""

from typing import Any

import pytest

from support.guest import WAIT_SECONDS
from support.guest_lab import Answers
from support.guest_planted import LEAKED_OBJECTS, LOST_PACKETS

pytestmark = pytest.mark.timeout(WAIT_SECONDS)  # the first test of each kernel boots it


def planted_and_seen(guest: Answers, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return guest[name]["planted"], guest[name]["seen"]


def test_a_module_built_for_the_kernel_leaks_objects_and_frees_them_when_it_is_unloaded(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "leak")
    assert planted["objects"] == LEAKED_OBJECTS
    assert seen["objects"] == pytest.approx(planted["objects"], rel=0.01)
    assert seen["symbols"] == [[planted["function"], f"[{planted['module']}]"]]
    assert not guest["leak"]["left"]


def test_a_module_loses_packets(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "lost")
    assert planted["packets"] == LOST_PACKETS
    assert planted["charge_bytes"] > planted["pinned_bytes"] == LOST_PACKETS * 2 * 4096
    assert seen["packets"] == pytest.approx(planted["packets"], rel=0.05)


def test_packets_wait_for_a_verdict(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "nfqueue")
    assert seen == {"packets": planted["packets"], "dropped": 0}


def test_sctp_messages_are_unread(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "sctp")
    (receive_bytes,) = seen["receive_bytes"]
    assert receive_bytes >= planted["unread_bytes"]


def test_tls_records_are_decrypted_by_the_kernel(guest: Answers) -> None:
    _, seen = planted_and_seen(guest, "ktls")
    statistics = seen["statistics"]
    assert (statistics["TlsCurrTxSw"], statistics["TlsCurrRxSw"], statistics["TlsDecryptError"]) == (1, 1, 0)


def test_first_fragments_wait_in_reassembly(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "fragments")
    assert seen["packets"] == planted["packets"]
    assert seen["memory_bytes"] > planted["packet_bytes"]


def test_a_qdiscs_packets_outlive_the_processes_of_their_namespace(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "zombie")
    assert seen["packets"] == pytest.approx(planted["packets"], rel=0.05)
    assert planted["network_namespace"] not in seen["namespaces"]


@pytest.mark.parametrize(("name", "counted"), [("neighbour", "packet_bytes"), ("slab_heads", "unread_bytes")])
def test_datagrams_are_charged_to_their_socket(guest: Answers, name: str, counted: str) -> None:
    planted, seen = planted_and_seen(guest, name)
    assert seen["udp_bytes"] > planted[counted]


def test_a_tun_devices_packets_are_in_slab(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "tun")
    assert seen["packets"] == pytest.approx(planted["packets"], rel=0.05)


@pytest.mark.parametrize("name", ["sockmap", "ktls"])
def test_what_is_in_a_list_of_its_own_can_be_read(guest: Answers, name: str) -> None:
    planted, seen = planted_and_seen(guest, name)
    assert seen["read_bytes"] == planted["unread_bytes"]


def test_system_v_messages_fill_objects_of_their_size(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "messages")
    assert seen["objects"] == pytest.approx(planted["messages"], rel=0.01)


@pytest.mark.parametrize(
    ("name", "counted"), [("trace_buffer", "buffer_bytes"), ("io_uring", "ring_bytes"), ("maps", "value_bytes")]
)
def test_buffers_have_their_size(guest: Answers, name: str, counted: str) -> None:
    planted, seen = planted_and_seen(guest, name)
    # Rings of old kernels are rounded up to a power of two.
    assert 0.98 * planted[counted] <= seen["bytes"] < (2 if name == "io_uring" else 1.02) * planted[counted]


def test_files_have_their_pages(guest: Answers) -> None:
    planted, seen = planted_and_seen(guest, "memfd")
    assert seen["bytes"] == planted["size_bytes"]
    planted, seen = planted_and_seen(guest, "deleted_file")
    assert seen["cached_bytes"] == pytest.approx(planted["size_bytes"], rel=0.05)


def test_the_runner_can_be_called_in_a_guest_with_modules(guest: Answers) -> None:
    assert guest["runner"]["status"] == 0, guest["runner"]["stderr"]
