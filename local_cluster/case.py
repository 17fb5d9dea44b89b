"""`make case`: the story that memdiag is made for, on a node in QEMU with a real network driver, and its answer.

nginx stops reading. Clients outside the node send small pieces of uploads, each between two blocks of bulk that another
program reads. The virtio-net driver takes blocks of 32 KiB for what arrives (drivers/net/virtio_net.c, add_recvbuf_
mergeable): a piece of 140 bytes, unread, keeps the whole block in which it arrived.
"""

import contextlib
import enum
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from local_cluster import case_image, guest_node, kubernetes_binaries
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
MIB = 1 << 20

# Sent before anybody asks; then on, slowly, while the diagnosis runs.
PIECES_BEFORE, PIECES_PER_SECOND_BEFORE = 16_000, 1_000
PIECES_PER_SECOND_DURING = 40


class Cause(enum.StrEnum):
    """Why the worker reads no more."""

    STOPPED = "stopped"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Memory:
    """What the node says of itself, in bytes."""

    free: int
    tcp: int
    """`mem` of TCP in /proc/net/sockstat: what the kernel charges to all TCP sockets."""


@dataclass(frozen=True)
class Outcome:
    """What one run of the case came to; all sizes in bytes."""

    ready_seconds: float
    sent: int
    worker_pid: int
    before: Memory
    planted: Memory
    tools: dict[str, str]
    """What the usual tools showed, by command line."""
    diagnosis: dict[str, Any]
    evidence: dict[str, Any]
    """The report's, of that diagnosis."""
    full: Memory
    """When the diagnosis had ended, and the clients had stopped."""
    after: Memory
    """When the worker had been killed."""
    rerun: dict[str, Any]

    @property
    def unread(self) -> int:
        """Unread bytes in the worker's sockets, as the diagnosis found them."""
        return sum(one["unreadBytes"] for one in self.evidence["holders"] if self._is_workers(one))

    @property
    def pinned(self) -> int:
        """Bytes that sockets pin, each block counted once however many sockets share it."""
        pinned: int = self.evidence["coverage"]["pinnedBytes"]
        return pinned

    def _is_workers(self, holder: dict[str, Any]) -> bool:
        return any(owner["pid"] == self.worker_pid for owner in holder["owners"])


def run_case(cluster: Cluster, cause: Cause, *, keep: bool) -> Outcome:
    """Bring up the cluster and its second node, let the story happen, diagnose it, mend it and diagnose again.

    Raises StepError for a step that failed.
    """
    was_up = cluster.is_running()
    if was_up:
        raise StepError(
            f"cluster {cluster.name} is running", remedy=f"python3 -m local_cluster down --name {cluster.name}"
        )
    try:
        return _run(cluster, cause)
    except StepError as failure:
        raise cluster.keep_log(failure) or failure from failure
    finally:
        if not keep:
            with step("everything taken down"):
                cluster.down()


def _run(cluster: Cluster, cause: Cause) -> Outcome:
    system = guest_node.provide_system(kubernetes_binaries.provide() / "kubelet")
    images = guest_node.provide_images([case_image.provide()])
    cluster.up(api_only=False, owner_pid=None)
    install(cluster)
    with step("second node, in QEMU") as current:
        ready_seconds = cluster.add_guest(system, images)
        current.outcome = f"Ready {ready_seconds:.0f} s after power on"
    with step("nginx on it"):
        kubectl(cluster, "apply", "-k", str(EXAMPLE))
        pods = ["pod/nginx", "pod/healthy-reader", "pod/node-shell"]
        kubectl(cluster, "-n", "web", "wait", "--for=condition=Ready", *pods, f"--timeout={PODS_TIMEOUT_SECONDS}s")
    with _Sender.started(cluster) as sender:
        return _story(cluster, cause, sender, ready_seconds)


def _story(cluster: Cluster, cause: Cause, sender: "_Sender", ready_seconds: float) -> Outcome:
    _tell("The node is healthy: nginx takes uploads, and reads them as they come.")
    before = _memory(cluster)
    sender.do(f"open {UPLOADS}")
    worker_pid = int(_on_node(cluster, "pgrep -f '[n]ginx: worker'"))
    if cause is Cause.STOPPED:
        _on_node(cluster, f"kill -STOP {worker_pid}")
        _tell(f"Its worker, process {worker_pid}, is stopped (SIGSTOP). It reads nothing more.")
    else:
        sender.do("get /report")
        _tell(f"Somebody asks for /report, whose handler blocks. The worker, process {worker_pid}, reads nothing more.")
    with step("clients go on sending"):
        sender.do(f"send {PIECES_PER_SECOND_BEFORE} {PIECES_BEFORE}")
    planted = _memory(cluster)
    _tell(f"Free memory fell by {_mib(before.free - planted.free)}, and TCP is charged {_mib(planted.tcp)}.")
    tools = _look_with_usual_tools(cluster, worker_pid)
    sending = sender.begin(f"send {PIECES_PER_SECOND_DURING}")
    print(f"$ kubectl apply -f {(EXAMPLE / 'memdiag.yaml').relative_to(PROJECT)}", flush=True)
    kubectl(cluster, "apply", "-f", str(EXAMPLE / "memdiag.yaml"))
    follow(cluster)
    found = diagnosis(cluster)
    sender.begin("stop")
    sent = int(sender.end(sending).split()[0])
    print("\n$ kubectl get memorydiagnoses")
    print(kubectl(cluster, "get", "memorydiagnoses"))
    print(render_status(found))
    evidence = _evidence(cluster, found)
    full = _memory(cluster)
    _on_node(cluster, f"kill -KILL {worker_pid}")
    after = _memory(cluster)
    _tell(f"The worker is killed, and {_mib(after.free - full.free)} of free memory come back at once.")
    request = f"after-{worker_pid}-was-killed"
    print(f"$ kubectl annotate --overwrite memdiag {NAME} memdiag.dev/requestedAt={request}", flush=True)
    kubectl(cluster, "annotate", "--overwrite", "memdiag", NAME, f"memdiag.dev/requestedAt={request}")
    follow(cluster, request)
    rerun = diagnosis(cluster)
    print(render_status(rerun))
    outcome = Outcome(
        ready_seconds=ready_seconds, sent=sent, worker_pid=worker_pid, before=before, planted=planted, tools=tools,
        diagnosis=found, evidence=evidence, full=full, after=after, rerun=rerun,
    )  # fmt: skip
    print(_beside_the_story(outcome))
    return outcome


def _evidence(cluster: Cluster, found: dict[str, Any]) -> dict[str, Any]:
    (reference,) = found["status"]["reportRefs"]
    report = json.loads(kubectl(cluster, "get", "memorydiagnosisreport", reference["name"], "-o", "json"))
    evidence: dict[str, Any] = report["evidence"]
    return evidence


def _beside_the_story(outcome: Outcome) -> str:
    evidence, unread, pinned = outcome.evidence, outcome.unread, outcome.pinned
    blocks, seconds = evidence["trace"]["outstandingBlocks"], evidence["window"]["tracedSeconds"]
    rows = (
        ("", "the story", "here"),
        ("allocpage", "6 GB", _mib(evidence["breakdown"]["allocPageBytes"])),
        ("unread in the worker's sockets", "3 MB", f"{unread / MIB:.2f} MiB"),
        ("which pin", "gigabytes", _mib(pinned)),
        ("bytes pinned by each unread one", "about 2000", f"{pinned / unread:.0f}"),
        ("`tcp mem` at that moment", "125 MB", _mib(outcome.full.tcp)),
        ("blocks allocated, not freed", "4,919 in 10 min", f"{blocks:,} in {seconds:.0f} s"),
        ("found by", "an expert, by hand", "one kubectl apply"),
    )
    return "\n" + "\n".join(f"  {name:<34} {story:<20} {here}" for name, story, here in rows) + "\n"


def _look_with_usual_tools(cluster: Cluster, worker_pid: int) -> dict[str, str]:
    commands = (
        "top -b -n 1 -o %MEM | head -n 12",
        "free -m",
        "slabtop --once --sort=c | head -n 15",
        "cat /proc/net/sockstat",
        f"nsenter --target {worker_pid} --net ss -tm state established",
    )
    with step("looked at with usual tools"):
        return {command: _on_node(cluster, command) for command in commands}


def _memory(cluster: Cluster) -> Memory:
    """The node's own figures, once they have come to rest."""
    _on_node(cluster, "sleep 2")
    lines = _on_node(cluster, "grep MemFree /proc/meminfo; grep TCP: /proc/net/sockstat").splitlines()
    return Memory(free=int(lines[0].split()[1]) * 1024, tcp=int(lines[1].split()[-1]) * 4096)


def _on_node(cluster: Cluster, command: str) -> str:
    return kubectl(cluster, "-n", "web", "exec", "node-shell", "--", "sh", "-c", command).strip()


@dataclass(frozen=True)
class _Sender:
    """The clients outside the node: examples/case/sender.py, between the first node and the tap device."""

    process: subprocess.Popen[str]

    @classmethod
    @contextlib.contextmanager
    def started(cls, cluster: Cluster) -> Iterator["_Sender"]:
        """Start it, end it."""
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
        """Have it do something; its answer."""
        return self.end(self.begin(words))

    def begin(self, words: str) -> str:
        """Have it start something, for `end` to wait for."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `end` tells why
            self.process.stdin.write(f"{words}\n")
        return words

    def end(self, words: str) -> str:
        """The answer to what was begun."""
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


def _tell(sentence: str) -> None:
    print(f"\n  {sentence}\n", flush=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:.0f} MiB"
