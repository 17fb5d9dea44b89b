"""containerd's configuration, for the node and for filling an image store."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

PAUSE_IMAGE = "memdiag.dev/pause:1"

_CONFIG = """\
version = 2
root = "{root}"
state = "{state}"

[grpc]
  address = "{socket}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # Lowering the OOM score of a process needs CAP_SYS_RESOURCE, which some machines do not grant; runc fails without it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{cni}"
"""


def write_config(file: Path, *, root: Path, state: Path, socket: Path, cni: Path) -> None:
    """Write the configuration of one containerd: its content, its volatile state, its socket, its CNI folder."""
    file.write_text(_CONFIG.format(root=root, state=state, socket=socket, cni=cni, pause=PAUSE_IMAGE))


def answers(socket: Path, enter: Sequence[str] = ()) -> bool:
    """Whether containerd responds on its socket, in the namespaces that `enter` selects (see Sandbox.enter)."""
    asked = subprocess.run([*enter, "ctr", f"--address={socket}", "version"], capture_output=True, check=False)
    return asked.returncode == 0
