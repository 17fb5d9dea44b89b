"""What goes wrong with eBPF."""

import os


class BpfError(Exception):
    """eBPF that cannot be compiled, loaded, attached or read; the message says what, why and how to mend it."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.errno = code

    @classmethod
    def of(cls, message: str, code: int) -> "BpfError":
        """With the words for an error number; 0 is none."""
        return cls(f"{message}: {os.strerror(code)}" if code else message, code)
