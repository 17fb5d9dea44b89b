"""A recorded trace: the tables as the kernel had them, before they are decoded.

    PYTHONPATH=tests:node_runner:api python tests/support/raw_trace.py     records it again, as root

The load while it was recorded: 4 MiB into pipes in eight steps, a 4 MiB packet ring, page tables, and pipe churn.
"""

import json
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from memdiag_node.procfs.roots import HostRoots
from memdiag_node.trace.pages.decode import RawTrace
from memdiag_node.trace.pages.frame_tally import FrameTally
from memdiag_node.trace.pages.page_trace import PageTrace
from memdiag_node.trace.pages.tables import CPU_DTYPE
from memdiag_node.trace.settings import TraceSettings
from planted.allocations import Allocator
from planted.memory import PlantedMemory

RECORDED = Path(__file__).parent.parent / "fixtures/trace/linux-6.18-x86_64"
_ARRAYS = ("infos", "stacks", "cgroups", "lives", "cpus")
_NUMBERS = tuple(one.name for one in fields(RawTrace) if one.name not in (*_ARRAYS, "tally", "retired", "slab"))


def save(raw: RawTrace, symbols: dict[int, str], contexts: list[int], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    parts = np.concatenate(raw.tally.parts)
    arrays = {name: getattr(raw, name) for name in _ARRAYS}
    np.savez_compressed(
        directory / "tables.npz", by_kind=raw.tally.by_kind, blocks=raw.tally.blocks, parts=parts, **arrays
    )
    numbers = {name: getattr(raw, name) for name in _NUMBERS}
    text = {
        **numbers,
        "retired": {str(key): value for key, value in raw.retired.items()},
        "charged": {str(key): value for key, value in raw.tally.charged.items()},
        "symbols": {str(address): symbol for address, symbol in symbols.items()},
        "contexts": contexts,
    }
    (directory / "trace.json").write_text(json.dumps(text, indent=1) + "\n")


def load(directory: Path = RECORDED) -> tuple[RawTrace, dict[int, str], list[int]]:
    """The tables, the symbols of their addresses, and the context of each stack."""
    text = json.loads((directory / "trace.json").read_text())
    with np.load(directory / "tables.npz") as arrays:
        tally = FrameTally(
            by_kind=arrays["by_kind"],
            blocks=arrays["blocks"],
            parts=[arrays["parts"]],
            charged={int(key): value for key, value in text["charged"].items()},
        )
        raw = RawTrace(
            **{name: arrays[name] for name in _ARRAYS if name != "cpus"},
            cpus=_with_newer_counters(arrays["cpus"]),
            **{name: text[name] for name in _NUMBERS},
            retired={int(key): tuple(value) for key, value in text["retired"].items()},
            tally=tally,
        )
    return raw, {int(address): symbol for address, symbol in text["symbols"].items()}, text["contexts"]


def _with_newer_counters(cpus: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """The recorded counters; 0 for those that the program did not have then."""
    result = np.zeros(len(cpus), CPU_DTYPE)
    for name in set(cpus.dtype.names or ()) & set(CPU_DTYPE.names or ()):
        result[name] = cpus[name]
    return result


def record() -> None:
    settings = TraceSettings(duration_seconds=4)
    with (
        Allocator() as child,
        PlantedMemory("packet_ring", 4 << 20) as ring,
        PlantedMemory("page_tables", 1 << 20) as page_tables,
        PageTrace(settings, roots=HostRoots()) as trace,
    ):
        ring.plant()
        page_tables.plant()
        child.do("churn_pipes", 2000)
        time.sleep(0.1)  # what directly follows a storm is sampled like the storm
        for _ in range(8):
            child.do("fill_pipes", 512 << 10)
            time.sleep(0.4)
            trace.advance()
        raw = trace.read_out()
        save(raw, trace.symbols(raw), trace.contexts(raw).tolist(), RECORDED)


if __name__ == "__main__":
    record()
