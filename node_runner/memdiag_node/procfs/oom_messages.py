"""The kernel log: processes that the kernel killed for lack of memory (kernel: mm/oom_kill.c, mm/memcontrol.c).

    sh invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
    memory: usage 51200kB, limit 51200kB, failcnt 436       of a cgroup, then `Memory cgroup stats for PATH:`
    Mem-Info:                                                of the node, in pages
    oom-kill:constraint=CONSTRAINT_MEMCG,...,oom_memcg=PATH,task_memcg=PATH,task=COMM,pid=520,uid=0
    Memory cgroup out of memory: Killed process 520 (COMM) total-vm:221356kB, anon-rss:50688kB, ...

All but the last line may be missing, because the kernel limits their rate. A process may have any name, with line feeds
in it too: the kernel starts each line of a message with the same level and time stamp. Lines of user space have another
facility in their level.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_LINE = re.compile(rb"<(\d{1,3})>(?:\[ *(\d{1,12}\.\d{1,9})\])?(?:\[ *[TC]\d{1,10}\])? ?(.*)", re.DOTALL)
_FIRST_LEVEL_OF_USER_SPACE = 8
_MAX_COMM_LINES = 16  # a name has 15 bytes
_INVOKED = re.compile(rb" invoked oom-killer: gfp_mask=0x")
_USAGE = re.compile(rb"memory: usage \d{1,18}kB, limit (\d{1,18})kB, failcnt (\d{1,18})")
_STATS = re.compile(rb"Memory cgroup stats for .*:", re.DOTALL)
_STAT = re.compile(rb"([a-z_]{1,40}) (\d{1,18})")
_NODE_FIGURE = re.compile(rb"([a-z_]{1,40}):(\d{1,15})(?= |$)")
_CHOSEN = re.compile(
    rb"oom-kill:constraint=CONSTRAINT_[A-Z_]{1,20},nodemask=.*?,"
    rb"(?:oom_memcg=(?P<limited>.*?)|global_oom),task_memcg=(?P<victim>.*),task=.{0,15},pid=(?P<pid>\d{1,10}),uid=\d{1,10}",
    re.DOTALL,
)
_KILLED_START = re.compile(rb"(?:Memory cgroup out|Out) of memory(?: \([a-z_]{1,40}\))?: Killed process \d{1,10} \(")
_KILLED = re.compile(
    rb"(?P<cgroup>Memory cgroup o|O)ut of memory(?: \([a-z_]{1,40}\))?: Killed process (?P<pid>\d{1,10}) "
    rb"\((?P<comm>.{0,15})\),? total-vm:\d{1,15}kB, anon-rss:(?P<anon>\d{1,15})kB, file-rss:(?P<file>\d{1,15})kB, "
    rb"shmem-rss:(?P<shmem>\d{1,15})kB(?:, UID:\d{1,10} pgtables:(?P<tables>\d{1,15})kB oom_score_adj:-?\d{1,5})?"
    rb"(?:[ ,].*)?",
    re.DOTALL,
)
_GROUP_KILL = re.compile(rb"Tasks in (.*) are going to be killed due to memory\.oom\.group set", re.DOTALL)
_NODE_NAMES = frozenset({
    *("active_anon", "inactive_anon", "active_file", "inactive_file", "unevictable", "dirty", "writeback"),
    *("slab_reclaimable", "slab_unreclaimable", "mapped", "shmem", "pagetables", "kernel_misc_reclaimable", "free"),
})  # fmt: skip
_GROUP_NAMES = frozenset({
    *("anon", "file", "shmem", "kernel", "kernel_stack", "pagetables", "percpu", "sock", "vmalloc", "zswap"),
    *("swapcached", "file_dirty", "file_writeback", "slab_reclaimable", "slab_unreclaimable", "unevictable"),
    *("total_rss", "total_cache", "total_shmem", "total_swap"),  # version 1
})  # fmt: skip
_KIB = 1024


@dataclass(frozen=True, slots=True)
class OomMessage:
    """One process that was killed, and what the log has about the reason."""

    log_seconds: float | None
    """Time stamp: about the seconds since boot without suspensions. None if the log has none."""
    is_of_cgroup: bool
    """Whether the limit of a cgroup was reached; else the node lacked memory."""
    comm: bytes
    pid: int
    anon_bytes: int
    file_bytes: int
    shmem_bytes: int
    page_table_bytes: int | None
    limited_path: bytes = b""
    """Path of the cgroup whose limit was reached; empty if it is not known."""
    victim_path: bytes = b""
    """Path of the victim's cgroup; empty if it is not known."""
    limit_bytes: int | None = None
    limit_hits: int | None = None
    classes_bytes: dict[str, int] = field(default_factory=dict)
    """What was large then, by the kernel's names: of the cgroup or of the node."""


@dataclass(slots=True)
class _Context:
    """What was read since the kernel began to look for a victim."""

    limit_bytes: int | None = None
    limit_hits: int | None = None
    classes_bytes: dict[str, int] = field(default_factory=dict)
    limited_path: bytes = b""
    victim_path: bytes = b""
    pid: int = -1
    block: str = ""
    is_group_kill: bool = False


@dataclass(frozen=True, slots=True)
class _Line:
    seconds: float | None
    level: int
    text: bytes

    def continues(self, before: "_Line | None") -> bool:
        """Whether it may be a further line of the same message."""
        return (
            before is not None
            and self.seconds is not None
            and (self.seconds, self.level) == (before.seconds, before.level)
        )


def parse_oom_messages(log: bytes, *, page_bytes: int) -> list[OomMessage]:
    """Return the killed processes, oldest first. `log` is what syslog(2) returns. Lines of other kinds are skipped."""
    lines = list(_lines(log))
    found: list[OomMessage] = []
    context = _Context()
    for number, line in enumerate(lines):
        before = lines[number - 1] if number else None
        if _INVOKED.search(line.text):
            context = _Context()
        elif line.text.startswith(b"oom-kill:") and not line.continues(before):
            _read_chosen(context, _message(lines, number, _CHOSEN))
        elif _KILLED_START.match(line.text) and not line.continues(before):
            killed = _message(lines, number, _KILLED)
            if killed:
                found.append(_killed(line, killed, context))
        else:
            _read_figures(context, line.text, page_bytes)
    return found


def _lines(log: bytes) -> Iterator[_Line]:
    """Yield the lines of the kernel itself."""
    for raw in log.split(b"\n"):
        match = _LINE.fullmatch(raw)
        if match and int(match[1]) < _FIRST_LEVEL_OF_USER_SPACE:
            yield _Line(float(match[2]) if match[2] else None, int(match[1]), match[3])


def _message(lines: list[_Line], number: int, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
    """Match a message that starts with this line, on as many lines as it needs: a name may have line feeds."""
    text = b""
    for index in range(number, min(number + _MAX_COMM_LINES, len(lines))):
        if index > number and not lines[index].continues(lines[number]):
            return None
        text += lines[index].text
        match = pattern.fullmatch(text)
        if match:
            return match
        text += b"\n"
    return None


def _read_chosen(context: _Context, chosen: re.Match[bytes] | None) -> None:
    context.block = ""
    if chosen:
        context.limited_path = chosen["limited"] or b""
        context.victim_path = chosen["victim"]
        context.pid = int(chosen["pid"])


def _read_figures(context: _Context, text: bytes, page_bytes: int) -> None:
    """Read a line with the figures of a cgroup or of the node, if it is one."""
    usage, group = _USAGE.fullmatch(text), _GROUP_KILL.fullmatch(text)
    if group:
        context.is_group_kill, context.victim_path = True, group[1]
    elif usage:
        context.limit_bytes, context.limit_hits = int(usage[1]) * _KIB, int(usage[2])
    elif text == b"Mem-Info:":
        context.block = "node"
    elif _STATS.fullmatch(text):
        context.block = "group"
    elif context.block == "node":
        if text.startswith(b"Node "):  # the same figures again, of one NUMA node
            context.block = ""
            return
        for match in _NODE_FIGURE.finditer(text):
            _keep(context, match, _NODE_NAMES, page_bytes)
    elif context.block == "group":
        stat = _STAT.fullmatch(text)
        if stat:
            _keep(context, stat, _GROUP_NAMES, 1)


def _keep(context: _Context, figure: re.Match[bytes], names: frozenset[str], unit_bytes: int) -> None:
    name = figure[1].decode()
    if name in names:
        context.classes_bytes.setdefault(name, int(figure[2]) * unit_bytes)


def _killed(line: _Line, killed: re.Match[bytes], context: _Context) -> OomMessage:
    pid, is_of_cgroup = int(killed["pid"]), killed["cgroup"] != b"O"
    # What is about another process is of an earlier decision, except for the further victims of memory.oom.group.
    fits = context.pid == pid or (context.is_group_kill and context.pid >= 0)
    fits = fits and bool(context.limited_path) == is_of_cgroup
    return OomMessage(
        log_seconds=line.seconds,
        is_of_cgroup=is_of_cgroup,
        comm=killed["comm"],
        pid=pid,
        anon_bytes=int(killed["anon"]) * _KIB,
        file_bytes=int(killed["file"]) * _KIB,
        shmem_bytes=int(killed["shmem"]) * _KIB,
        page_table_bytes=int(killed["tables"]) * _KIB if killed["tables"] else None,
        limited_path=context.limited_path if fits else b"",
        victim_path=context.victim_path if fits else b"",
        limit_bytes=context.limit_bytes if fits and is_of_cgroup else None,
        limit_hits=context.limit_hits if fits and is_of_cgroup else None,
        classes_bytes=dict(context.classes_bytes) if fits else {},
    )
