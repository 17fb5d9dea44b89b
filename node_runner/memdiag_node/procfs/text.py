"""Text that a process chose for itself, made fit to print."""


def printable(text: bytes, max_length: int) -> str:
    r"""Decode UTF-8 and escape whatever could steer a terminal, as \xNN or \uNNNN; at most `max_length` characters."""
    decoded = text[: 4 * max_length].decode(errors="backslashreplace")
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in decoded)
    return escaped[:max_length]
