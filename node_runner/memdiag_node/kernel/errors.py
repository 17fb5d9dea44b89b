"""Errors of eBPF."""

import os


class BpfError(Exception):
    """eBPF that cannot be compiled, loaded, attached or read; the message says what, why and how to fix it."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.errno = code

    @classmethod
    def of(cls, message: str, code: int) -> "BpfError":
        """An error with the text of an error number; 0 means none."""
        return cls(f"{message}: {os.strerror(code)}" if code else message, code)
