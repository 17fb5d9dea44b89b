"""Names of processes, shown so that they can be taken for nothing else.

A process chooses its own name: 15 bytes of anything (kernel: TASK_COMM_LEN is 16, with the final NUL). That of a kernel
thread may be longer, as it says what the thread works on.
"""

import re

MAX_COMM_LENGTH = 16
_PLAIN = re.compile(r"[A-Za-z0-9_.+@-]+")
_NOT_IN_QUOTES = re.compile(r"[^ !#-\[\]-~]")


def shown_process(comm: str, pid: int) -> str:
    """`nginx[4711]`; a name that could pass for a pod or for words around it is quoted: `"kube-system/etcd"[4711]`."""
    return f"{quoted_unless(_PLAIN, comm, MAX_COMM_LENGTH)}[{pid}]"


def quoted_unless(plain: re.Pattern[str], text: str, limit: int) -> str:
    """The first `limit` characters of `text`, in double quotes unless all of it is `plain`.

    In the quotes are only ASCII characters, and no other quotes.
    """
    short = text[:limit]
    return short if plain.fullmatch(short) else f'"{_NOT_IN_QUOTES.sub("?", short)}"'
