"""Loaded modules, in a memory of a few words that is laid out like the kernel's."""

import os
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from memdiag_node.kernel.memory import KernelMemory
from memdiag_node.kernel.modules import NO_MODULES, read_modules

LAYOUT = {
    "HAS_MODULES": 1,
    "FILE_INODE": 8,
    "INODE_NODE": 16,
    "NODE_OBJECT": 24,
    "OBJECT_OF_MODULE": 32,
    "OBJECT_MODULE": 96,
    "MODULE_NAME": 24,
    "MODULE_LIST": 8,
    "PARTS": 2,
    "PARTS_START": 128,
    "PART_STRIDE": 16,
    "PART_BASE": 0,
    "PART_SIZE": 8,
}
HEAD, LEAKY, OTHER, FILE = 0x1000, 0x2000, 0x3000, 0x9000


class FewWords:
    """The list: the head, `leaky`, `other`. Only `leaky` is reached from its directory."""

    def __init__(self) -> None:
        self.words = {
            FILE + 8: 0xA000,  # inode
            0xA000 + 16: 0xB000,  # node
            0xB000 + 24: 0xC020,  # kobject, 32 bytes inside its module_kobject
            0xC000 + 96: LEAKY,
            HEAD: LEAKY + 8,
            LEAKY + 8: OTHER + 8,
            OTHER + 8: HEAD,
            LEAKY + 24: int.from_bytes(b"leaky", "little"),
            OTHER + 24: int.from_bytes(b"other", "little"),
            LEAKY + 128: 0xFFFFFFFFC0010000,
            LEAKY + 136: 0x1_0000_1000,  # the size is in 32 bits
            LEAKY + 144: 0xFFFFFFFFC0030000,
            LEAKY + 152: 0x2000,
            OTHER + 128: 0xFFFFFFFFC0020000,
            OTHER + 136: 0x1000,
        }

    def peek(self, addresses: npt.ArrayLike) -> npt.NDArray[np.uint64]:
        return np.array([self.words.get(address, 0) for address in np.asarray(addresses, "<u8").tolist()], "<u8")

    def word(self, address: int) -> int:
        return self.words.get(address, 0)

    def file(self, fd: int) -> int:
        assert os.fstat(fd)
        return FILE

    def texts(self, addresses: npt.NDArray[np.uint64], _: int) -> list[bytes]:
        return [word.to_bytes(8, "little").split(b"\0")[0] for word in self.peek(addresses).tolist()]


@pytest.fixture
def sys_root(tmp_path: Path) -> Path:
    for name in ("built_in", "leaky", "other"):
        (tmp_path / "module" / name).mkdir(parents=True)
    for name in ("leaky", "other"):
        (tmp_path / "module" / name / "initstate").touch()
    return tmp_path


def test_every_part_of_every_module_has_its_name(sys_root: Path) -> None:
    modules = read_modules(cast("KernelMemory", FewWords()), LAYOUT, sys_root)
    assert modules.names == ("leaky", "other", "leaky")
    assert [modules.module_of(0xFFFFFFFFC0000000 + offset) for offset in (0, 0x10000, 0x10FFF, 0x11000)] == [
        "",
        "leaky",
        "leaky",
        "",
    ]
    assert modules.module_of(0xFFFFFFFFC0020800) == "other"
    assert modules.module_of(0xFFFFFFFFC0031FFF) == "leaky"
    assert modules.module_of(0xFFFFFFFFC0032000) == ""


def test_a_module_that_sysfs_does_not_show_is_garbage(sys_root: Path) -> None:
    (sys_root / "module/other/initstate").unlink()
    (sys_root / "module/other").rmdir()
    assert set(read_modules(cast("KernelMemory", FewWords()), LAYOUT, sys_root).names) == {"leaky"}


def test_without_loaded_modules_or_without_sysfs_there_are_none(tmp_path: Path) -> None:
    assert read_modules(cast("KernelMemory", FewWords()), LAYOUT, tmp_path) is NO_MODULES
    assert read_modules(cast("KernelMemory", FewWords()), {}, tmp_path) is NO_MODULES
