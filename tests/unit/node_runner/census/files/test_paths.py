"""How paths are cut to what shows whose they are."""

import pytest

from memdiag_node.census.files.paths import MAX_PATH_LENGTH, cut_path

UID = "0b2c1b0e-5c0d-4a8e-9f43-6f2f7f0a9f11"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("", "/"),
        ("file", "/file"),
        ("var/lib/db/table", "/var/lib/db/table"),
        ("var/lib/db/one/table", "/var/lib/db/one/table"),
        ("var/lib/db/one/two/table", "/var/lib/.../two/table"),
        (
            f"var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/cache",
            f"/var/lib/.../pods/{UID}/.../kubernetes.io~empty-dir/cache",
        ),
        (
            f"var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~empty-dir/cache/a/b/c",
            f"/var/lib/.../pods/{UID}/.../b/c",
        ),
        (
            "var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/171/fs/var/log/app/today.log",
            "/var/lib/.../snapshots/171/.../app/today.log",
        ),
    ],
)
def test_a_path_keeps_its_ends_and_its_owner(path: str, expected: str) -> None:
    assert cut_path(path.split("/") if path else []) == expected


def test_long_names_are_cut_to_the_bound() -> None:
    container = "c" * 64
    cut = cut_path(["var", "lib", "containers", container, "x" * 255, "pods", "p" * 255, "y" * 255, "z" * 255])
    assert len(cut) == MAX_PATH_LENGTH
    assert cut.startswith(f"/var/lib/containers/{'c' * 20}")
    assert cut.endswith("z" * 20 + "...")
