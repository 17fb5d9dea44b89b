"""The demo's output for a diagnosis."""

import subprocess
import sys

from local_cluster.paths import PROJECT
from local_cluster.status_report import render_status

NEARLY_A_GIB = 1_048_156_570  # 999.6 MiB


def test_sizes_are_written_as_everywhere_else() -> None:
    result = {
        "nodeName": "here",
        "memTotalBytes": 24 << 30,
        "allocPageBytes": NEARLY_A_GIB,
        "topHolders": [{"kind": "Pipe", "pinnedBytes": 5 << 20, "unreadBytes": 999}],
    }
    text = render_status({"status": {"results": [result]}})
    assert "Memory 24.0 GiB; allocpage 0.98 GiB, changed by 0 B in the window" in text
    assert "5.00 MiB pinned by 999 B unread" in text


def test_findings_come_in_their_order_with_what_frees_them() -> None:
    unread = {
        "leak": "Yes",
        "namespace": "demo",
        "pod": "slow-reader",
        "sentence": "python3[7] fd 4: 234 KiB unread pins 117 MiB.",
        "freedBy": "Restart it.",
        "freedBytes": 117 << 20,
    }
    cache = {"leak": "No", "sentence": "3.00 GiB are cache of files."}
    text = render_status({"status": {"results": [{"nodeName": "here", "findings": [unread, cache]}]}})
    assert text.splitlines()[-4:] == [
        "  Findings, most important first:",
        "     1. demo/slow-reader: python3[7] fd 4: 234 KiB unread pins 117 MiB. (leak)",
        "        to free it: Restart it (117 MiB)",
        "     2. 3.00 GiB are cache of files.",
    ]


def test_it_needs_nothing_installed() -> None:
    """`make demo` runs with Debian's Python: no site-packages, no environment."""
    program = "import local_cluster.__main__, local_cluster.status_report, memdiag_api.units as u; print(u.__file__)"
    run = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=PROJECT, env={}, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(PROJECT / "api/memdiag_api/units.py")
