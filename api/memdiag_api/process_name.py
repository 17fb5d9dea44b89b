"""Names of processes, formatted so that they cannot be mistaken for anything else.

A process chooses its own name: 15 arbitrary bytes (kernel: TASK_COMM_LEN is 16, with the final NUL). The name of a
kernel thread may be longer, because it says what the thread works on.
"""

import re

MAX_COMM_LENGTH = 16
_PLAIN = re.compile(r"[A-Za-z0-9_.+@-]+")
_NOT_IN_QUOTES = re.compile(r"[^ !#-\[\]-~]")


def shown_process(comm: str, pid: int) -> str:
    """Return `nginx[4711]`. A name that could be mistaken for other text is quoted: `"kube-system/etcd"[4711]`."""
    return f"{quoted_unless(_PLAIN, comm, MAX_COMM_LENGTH)}[{pid}]"


def quoted_unless(plain: re.Pattern[str], text: str, limit: int) -> str:
    """Return the first `limit` characters of `text`, in double quotes unless all of them match `plain`.

    Quoted text has only ASCII characters and no further quotes.
    """
    short = text[:limit]
    return short if plain.fullmatch(short) else f'"{_NOT_IN_QUOTES.sub("?", short)}"'
