"""fdinfo of graphics devices: examples in the format of Documentation/gpu/drm-usage-stats.rst, by driver."""

from pathlib import Path

import pytest

from memdiag_node.holders.drm_buffers import drm_clients, ram_bytes
from memdiag_node.procfs.drm_fdinfo import DrmRegion, parse_drm_fdinfo
from memdiag_node.procfs.errors import ProcFormatError

I915 = b"""pos:	0
flags:	02100002
mnt_id:	26
ino:	1234
drm-driver:	i915
drm-client-id:	42
drm-pdev:	0000:00:02.0
drm-total-system0:	64 MiB
drm-shared-system0:	16 MiB
drm-active-system0:	0
drm-resident-system0:	48 MiB
drm-purgeable-system0:	4 KiB
drm-engine-render:	9288864723 ns
drm-engine-capacity-video:	2
"""
AMDGPU = b"""drm-driver:	amdgpu
drm-client-id:	7
drm-pdev:	0000:03:00.0
drm-memory-vram:	102400 KiB
drm-memory-gtt: 	2048 KiB
drm-memory-cpu: 	512 KiB
"""


def test_regions_with_their_sizes() -> None:
    client = parse_drm_fdinfo(I915)
    assert client is not None
    assert (client.driver, client.device, client.client_id) == ("i915", "0000:00:02.0", "42")
    assert client.regions == {"system0": DrmRegion(64 << 20, 48 << 20, 16 << 20)}
    assert ram_bytes(client) == 32 << 20


def test_the_older_keys_and_memory_of_the_device() -> None:
    client = parse_drm_fdinfo(AMDGPU)
    assert client is not None
    assert client.regions["vram"].resident_bytes == 100 << 20
    assert ram_bytes(client) == 2560 << 10


def test_another_file_has_no_client() -> None:
    assert parse_drm_fdinfo(b"pos:\t0\nflags:\t02\neventfd-count:\t3\n") is None


@pytest.mark.parametrize("size", [b"1 GiB", b"-1", b"x", b"1" * 20])
def test_an_unknown_size_is_named(size: bytes) -> None:
    with pytest.raises(ProcFormatError, match="fdinfo:2: expected a size"):
        parse_drm_fdinfo(b"drm-driver: x\ndrm-total-system: " + size + b"\n")


def test_fds_of_one_client_count_once_and_what_cannot_be_read_is_counted(tmp_path: Path) -> None:
    for pid, fd, text in ((1, 3, I915), (1, 4, I915), (2, 3, AMDGPU), (2, 5, b"drm-driver: x\ndrm-total-a: ?\n")):
        path = tmp_path / str(pid) / "fdinfo"
        path.mkdir(parents=True, exist_ok=True)
        (path / str(fd)).write_bytes(text)
    found, unreadable = drm_clients(tmp_path, [(1, 3), (1, 4), (2, 3), (2, 5), (9, 9)])
    assert unreadable == 1
    assert {pid: ([one.driver for one in clients], fds) for pid, (clients, fds) in found.items()} == {
        1: (["i915"], [3, 4]),
        2: (["amdgpu"], [3]),
    }
