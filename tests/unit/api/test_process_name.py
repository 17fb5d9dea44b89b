"""A process chooses its own name: it must not be mistaken for anything else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memdiag_api.process_name import MAX_COMM_LENGTH, shown_process


@pytest.mark.parametrize(
    ("comm", "shown"),
    [
        ("nginx", "nginx[7]"),
        ("python3.11", "python3.11[7]"),
        ("kube-system/etcd", '"kube-system/etcd"[7]'),
        ("etcd (no pod)", '"etcd (no pod)"[7]'),
        ("a[1] fd 3: 9 GiB", '"a[1] fd 3: 9 GiB"[7]'),
        ('"x"[1] y', '"?x?[1] y"[7]'),
        ("a\\", '"a?"[7]'),
        ("kube\u2215etcd", '"kube?etcd"[7]'),
        ("", '""[7]'),
        ("x" * 300, f"{'x' * MAX_COMM_LENGTH}[7]"),
    ],
)
def test_a_name_is_shown_as_a_name(comm: str, shown: str) -> None:
    assert shown_process(comm, 7) == shown


@given(st.text())
def test_no_name_reaches_beyond_its_quotes(comm: str) -> None:
    name = shown_process(comm, 7).removesuffix("[7]")
    assert len(name) <= MAX_COMM_LENGTH + 2
    assert name.isascii()
    if name.startswith('"'):
        assert name.count('"') == 2
        assert name.endswith('"')
    else:
        assert not set(name) & set("/:()[]{} ,<>'")
