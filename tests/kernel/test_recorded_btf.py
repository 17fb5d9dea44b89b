"""Programs built for a recorded kernel: this kernel's verifier accepts them, although their offsets are wrong here."""

from pathlib import Path

from memdiag_node.kernel.btf import Btf
from memdiag_node.kernel.loader import BpfObject
from memdiag_node.kernel.memory import Fact
from memdiag_node.sockets import source
from memdiag_node.sockets.source import SocketSource, socket_defines
from memdiag_node.walker import walker
from memdiag_node.walker.walker import queue_defines
from tools.cut_btf import LAYOUTS, CuttableBtf

RECORDED = Path(__file__).parents[1] / "fixtures/btf/linux-5.10-x86_64.btf"
RUNNING = Path("/sys/kernel/btf/vmlinux")
STEPS = 16


def test_the_programs_for_linux_5_10_pass_the_verifier() -> None:
    """None of the programs is run."""
    btf = Btf.parse(RECORDED.read_bytes())
    for path, defines, programs in (
        (source._SOURCE, socket_defines(btf), ("describe", "peek")),
        (walker._SOURCE, {**queue_defines(btf), "STEPS": STEPS}, ("walk",)),
    ):
        with BpfObject(path, defines) as loaded:
            for program in programs:
                loaded.runnable(program)


def test_a_cut_blob_answers_like_the_complete_one() -> None:
    whole = CuttableBtf.parse(RUNNING.read_bytes())
    answers = [layout(whole) for layout in LAYOUTS]
    cut = Btf.parse(whole.cut())
    assert [layout(cut) for layout in LAYOUTS] == answers


def test_slabs_of_this_kernel_agree_on_the_linear_map() -> None:
    """So packet heads, packet rings and perf buffers are seen from the first scan on."""
    with SocketSource(Btf.load()) as source:
        assert source.memory.fact(Fact.LINEAR_TO_PAGE) != 0
