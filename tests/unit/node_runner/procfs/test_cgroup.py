import pytest

from memdiag_node.procfs.cgroup import ContainerIdentity, parse_cgroup
from memdiag_node.procfs.errors import ProcFormatError
from support.cgroup_paths import CGROUP_FILES


@pytest.mark.parametrize(
    ("text", "container_id", "pod_uid"), [row[1:] for row in CGROUP_FILES], ids=[row[0] for row in CGROUP_FILES]
)
def test_the_path_names_container_and_pod(text: bytes, container_id: str, pod_uid: str) -> None:
    assert parse_cgroup(text) == ContainerIdentity(container_id, pod_uid)


def test_the_error_names_a_malformed_line() -> None:
    with pytest.raises(ProcFormatError, match=r"^/proc/7/cgroup:2: expected `ID:CONTROLLERS:PATH`, found 'nonsense'$"):
        parse_cgroup(b"0::/\nnonsense\n", source="/proc/7/cgroup")
