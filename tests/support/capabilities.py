"""Run a command as root with few capabilities, as a container runtime does (capabilities(7), setpriv(1))."""

from collections.abc import Iterable


def only(capabilities: Iterable[str]) -> list[str]:
    """The command prefix that grants these capabilities, no others, and no way to get more."""
    bounding = ",".join(["-all", *(f"+{name.lower()}" for name in capabilities)])
    return ["setpriv", "--no-new-privs", "--inh-caps=-all", "--ambient-caps=-all", f"--bounding-set={bounding}", "--"]
