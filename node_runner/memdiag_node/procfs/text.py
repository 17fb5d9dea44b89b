"""Text that a process controls, made safe to print."""


def printable(text: bytes, max_length: int) -> str:
    r"""Decode UTF-8 and escape what could control a terminal as \xNN or \uNNNN, up to `max_length` characters."""
    decoded = text[: 4 * max_length].decode(errors="backslashreplace")
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)
    return escaped[:max_length]
