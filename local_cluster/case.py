"""The case that memdiag is made for, on a node in QEMU with a real network driver: its steps and its measurements.

nginx stops reading. Clients outside the node send small pieces of uploads, each between two blocks of bulk data that
another program reads. The virtio-net driver allocates blocks of 32 KiB for incoming packets (drivers/net/virtio_net.c,
add_recvbuf_mergeable): an unread piece of 140 bytes keeps the whole block in which it arrived.

`make case` shows it (the texts are in case_story.py); a test checks the same Outcome (tests/vm/test_case.py).
"""

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from local_cluster import case_image, case_story, guest_node, kubernetes_binaries
from local_cluster.case_outcome import Cause, Moment, Outcome
from local_cluster.cluster import Cluster
from local_cluster.demo import diagnosis, follow, install, kubectl
from local_cluster.paths import PROJECT
from local_cluster.sandbox import Sandbox
from local_cluster.status_report import render_status
from local_cluster.steps import StepError, step

EXAMPLE = PROJECT / "examples/case"
NAME = "where-is-the-memory"
PODS_TIMEOUT_SECONDS = 180
UPLOADS = 8
HTTP_PORT = 80

# Sent before the diagnosis; then more slowly while the diagnosis runs.
PIECES_BEFORE, PIECES_PER_SECOND_BEFORE = 16_000, 1_000
PIECES_PER_SECOND_DURING = 40

# Free memory is stable once it changes by less than 1024 KiB within a second.
_AT_REST = """
last=0
for attempt in $(seq 30); do
  sleep 1
  now=$(awk '/^MemFree:/ { print $2 }' /proc/meminfo)
  change=$((now - last)); last=$now
  [ ${change#-} -lt 1024 ] && break
done
"""


def run_case(
    cluster: Cluster,
    cause: Cause,
    *,
    keep: bool = False,
    owner_pid: int | None = None,
    show: Callable[[str], None] = case_story.say,
) -> Outcome:
    """Start the cluster and its second node, reproduce the case, diagnose it, fix it and diagnose again.

    `owner_pid` as in Cluster.up; `show` is called with each part of the story as it happens. Raises StepError for a
    step that failed.
    """
    if cluster.is_running():
        raise StepError(
            f"cluster {cluster.name} is running", remedy=f"python3 -m local_cluster down --name {cluster.name}"
        )
    try:
        return _run(cluster, cause, owner_pid, show)
    except StepError as failure:
        raise cluster.keep_log(failure) or failure from failure
    finally:
        if not keep:
            with step("everything taken down"):
                cluster.down()


def _run(cluster: Cluster, cause: Cause, owner_pid: int | None, show: Callable[[str], None]) -> Outcome:
    system = guest_node.provide_system(kubernetes_binaries.provide() / "kubelet")
    images = guest_node.provide_images([case_image.provide()])
    cluster.up(api_only=False, owner_pid=owner_pid)
    install(cluster)
    with step("second node, in QEMU") as current:
        ready_seconds = cluster.add_guest(system, images)
        current.outcome = f"Ready {ready_seconds:.0f} s after power-on"
    with step("nginx on it"):
        kubectl(cluster, "apply", "-k", str(EXAMPLE))
        pods = ["pod/nginx", "pod/healthy-reader", "pod/node-shell"]
        kubectl(cluster, "-n", "web", "wait", "--for=condition=Ready", *pods, f"--timeout={PODS_TIMEOUT_SECONDS}s")
    with _Sender.started(cluster) as sender:
        return _story(cluster, cause, sender, ready_seconds, show)


def _story(
    cluster: Cluster, cause: Cause, sender: "_Sender", ready_seconds: float, show: Callable[[str], None]
) -> Outcome:
    show(case_story.healthy())
    worker_pid = int(_on_node(cluster, "pgrep -f '[n]ginx: worker'"))
    before = _moment(cluster, worker_pid)
    sender.do(f"open {UPLOADS}")
    if cause is Cause.STOPPED:
        _on_node(cluster, f"kill -STOP {worker_pid}")
    else:
        sender.do("get /report")
    show(case_story.reads_no_more(cause, worker_pid))
    with step("clients keep sending"):
        sent_before = _sent_bytes(sender.do(f"send {PIECES_PER_SECOND_BEFORE} {PIECES_BEFORE}"))
    planted = _moment(cluster, worker_pid)
    show(case_story.memory_is_gone(before, planted))
    with step("checked with the usual tools"):
        tools = _usual_tools(cluster, worker_pid)
    show(case_story.tools_show(tools))

    sending = sender.begin(f"send {PIECES_PER_SECOND_DURING}")
    show(f"$ kubectl apply -f {(EXAMPLE / 'memdiag.yaml').relative_to(PROJECT)}")
    asked = time.monotonic()
    kubectl(cluster, "apply", "-f", str(EXAMPLE / "memdiag.yaml"))
    follow(cluster)
    diagnosis_seconds = time.monotonic() - asked
    found = diagnosis(cluster)
    sender.begin("stop")
    sent = _sent_bytes(sender.end(sending))
    show(f"\n$ kubectl get memorydiagnoses\n{kubectl(cluster, 'get', 'memorydiagnoses')}\n{render_status(found)}")
    evidence = _evidence(cluster, found)
    full = _moment(cluster, worker_pid)

    _on_node(cluster, f"kill -KILL {worker_pid}")
    after = _moment(cluster, worker_pid)
    show(case_story.memory_is_back(full, after))
    request = f"after-{worker_pid}-was-killed"
    show(f"$ kubectl annotate --overwrite memdiag {NAME} memdiag.dev/requestedAt={request}")
    kubectl(cluster, "annotate", "--overwrite", "memdiag", NAME, f"memdiag.dev/requestedAt={request}")
    follow(cluster, request)
    rerun = diagnosis(cluster)
    show(render_status(rerun))
    outcome = Outcome(
        ready_seconds=ready_seconds, sent_before=sent_before, sent=sent, worker_pid=worker_pid, before=before,
        planted=planted, tools=tools, diagnosis=found, diagnosis_seconds=diagnosis_seconds, evidence=evidence,
        full=full, after=after, rerun=rerun,
    )  # fmt: skip
    show(case_story.beside_the_story(outcome))
    return outcome


def _evidence(cluster: Cluster, found: dict[str, Any]) -> dict[str, Any]:
    (reference,) = found["status"]["reportRefs"]
    report = json.loads(kubectl(cluster, "get", "memorydiagnosisreport", reference["name"], "-o", "json"))
    evidence: dict[str, Any] = report["evidence"]
    return evidence


def _usual_tools(cluster: Cluster, worker_pid: int) -> dict[str, str]:
    commands = (
        "top -b -n 1 -o %MEM | head -n 12",
        "free -m",
        "slabtop --once --sort=c | head -n 15",
        "cat /proc/net/sockstat",
        f"nsenter --target {worker_pid} --net ss -tm state established",
    )
    return {command: _on_node(cluster, command) for command in commands}


def _moment(cluster: Cluster, worker_pid: int) -> Moment:
    """The node's own figures, once they are stable; without connections if the worker has exited."""
    _on_node(cluster, _AT_REST)
    lines = _on_node(cluster, "grep MemFree /proc/meminfo; grep TCP: /proc/net/sockstat").splitlines()
    command = f"nsenter --target {worker_pid} --net ss -tnpH state established 'sport = :{HTTP_PORT}'"
    connections = _on_node(cluster, f"test ! -d /proc/{worker_pid} || {command}").splitlines()
    unread = {
        found[1]: int(line.split()[0])
        for line in connections
        if (found := re.search(rf"pid={worker_pid},fd=(\d+)", line))
    }
    return Moment(free=int(lines[0].split()[1]) * 1024, tcp=int(lines[1].split()[-1]) * 4096, unread=unread)


def _on_node(cluster: Cluster, command: str) -> str:
    return kubectl(cluster, "-n", "web", "exec", "node-shell", "--", "sh", "-c", command).strip("\n")


@dataclass(frozen=True)
class _Sender:
    """The clients outside the node: examples/case/sender.py, between the first node and the tap device."""

    process: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def started(cls, cluster: Cluster) -> Iterator["_Sender"]:
        """Run it for the duration of the body."""
        addresses = [_pod_address(cluster, name) for name in ("nginx", "healthy-reader")]
        command = [*_inside(cluster.sandbox()), sys.executable, str(EXAMPLE / "sender.py"), *addresses]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1) as process:
            try:
                sender = cls(process)
                sender.end("connect")
                yield sender
            finally:
                process.kill()
                process.communicate()

    def do(self, words: str) -> str:
        """Send a command and return the answer."""
        return self.end(self.begin(words))

    def begin(self, words: str) -> str:
        """Send a command; `end` waits for the answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has exited: `end` reports why
            self.process.stdin.write(f"{words}\n")
        return words

    def end(self, words: str) -> str:
        """The answer to the command that `begin` sent."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline().strip()
        if not answer:
            assert self.process.stderr is not None
            raise StepError(f"the clients failed at `{words}`: {self.process.stderr.read().strip()}")
        return answer


def _inside(sandbox: Sandbox) -> list[str]:
    return ["setpriv", "--pdeathsig=KILL", *sandbox.enter()]


def _pod_address(cluster: Cluster, name: str) -> str:
    pod: dict[str, Any] = json.loads(kubectl(cluster, "-n", "web", "get", "pod", name, "-o", "json"))
    address: str = pod["status"]["podIP"]
    return address


def _sent_bytes(answer: str) -> int:
    return int(answer.split(maxsplit=1)[0])
