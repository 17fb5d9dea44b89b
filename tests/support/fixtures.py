"""The recorded /proc and /sys trees of real kernels (see tools/record_proc.py)."""

from pathlib import Path

from memdiag_node.procfs.roots import HostRoots

RECORDED = sorted((Path(__file__).parent.parent / "fixtures/proc").iterdir())
RECORDED_IDS = [machine.name for machine in RECORDED]


def roots_of(machine: Path) -> HostRoots:
    return HostRoots(proc=machine / "proc", sys=machine / "sys")
