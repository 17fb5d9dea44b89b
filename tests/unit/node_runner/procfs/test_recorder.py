"""The command that records fixtures writes what the readers read."""

from pathlib import Path

import pytest

from support.fixtures import RECORDED, RECORDED_IDS
from tools.record_proc import record, scrub


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("machine", RECORDED, ids=RECORDED_IDS)
def test_recording_a_recorded_machine_is_idempotent(machine: Path, tmp_path: Path) -> None:
    copies = record(machine, tmp_path, (machine / "kernel_log").read_bytes())
    assert contents(tmp_path) == contents(machine)
    assert len(copies) == len(contents(tmp_path))


def test_addresses_are_not_recorded() -> None:
    line = b"0xffffc90000000000-0xffffc90000003000    8192 map_iomem+0x1bc/0x1e0 phys=0x00000000000a0000 ioremap\n"
    assert scrub(line) == b"0x0-0x0    8192 map_iomem+0x1bc/0x1e0 phys=0x0 ioremap\n"
