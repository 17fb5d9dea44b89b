"""The accounts of containers in the report."""

from typing import Any

import pytest

from memdiag_api import limits
from memdiag_api.containers import ContainerAccount
from memdiag_node.render.owners import containers_lines
from memdiag_node.render.text import WIDTH

MIB, GIB = 1 << 20, 1 << 30
ACCOUNT = ContainerAccount(container_id="c0ffee" * 8, usage_bytes=1023 * MIB)


def test_a_node_without_containers_has_no_section() -> None:
    assert containers_lines([]) == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"shmem_bytes": MIB - 1, "swap_bytes": 0, "usage_change_bytes": -4096}, []),
        ({"shmem_bytes": 3 * MIB, "swap_bytes": GIB}, ["shared memory 3.00 MiB, in swap 1.00 GiB"]),
        ({"usage_change_bytes": 8 * MIB}, ["+8.00 MiB in the window"]),
        ({"usage_change_bytes": -8 * MIB}, ["-8.00 MiB in the window"]),
        ({"limit_hits": 1200, "window_limit_hits": 0}, ["limit reached 1,200 times"]),
        (
            {"limit_hits": 12, "window_limit_hits": 3, "oom_kills": 2, "window_oom_kills": 1},
            ["limit reached 12 times, 3 of them in the window, 1 killed in the window"],
        ),
    ],
)
def test_a_container_has_a_second_line_if_there_is_more_to_say(fields: dict[str, Any], expected: list[str]) -> None:
    found = containers_lines([ACCOUNT.model_copy(update=fields)])
    assert [line.strip() for line in found[3:]] == expected


@pytest.mark.parametrize("name", ["container_id", "pod_uid"])
def test_no_column_of_a_container_is_cut_off(name: str) -> None:
    sizes = dict.fromkeys(
        ["limit_bytes", "working_set_bytes", "anon_bytes", "file_bytes", "kernel_bytes", "socket_bytes"], 9 * GIB
    )
    account = ContainerAccount.model_validate(
        {"container_id": "", "usage_bytes": 9 * GIB, "oom_kills": 123_456, **sizes, name: "7b035816-50bd-46b7-9262"}
    )
    assert containers_lines([account])[2].endswith(" 123456")


def test_the_section_is_short_and_narrow_with_every_container() -> None:
    account = ACCOUNT.model_copy(update={"limit_hits": 2**62, "window_limit_hits": 2**62, "swap_bytes": 2**62})
    found = containers_lines([account] * limits.MAX_CONTAINER_ACCOUNTS)
    assert len(found) <= 30
    assert max(map(len, found)) <= WIDTH
    assert found[-1] == "  56 more"
