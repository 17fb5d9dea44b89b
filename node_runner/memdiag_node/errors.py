"""Errors as text for a report."""

from memdiag_node.kernel.btf import BtfError
from memdiag_node.kernel.errors import BpfError
from memdiag_node.procfs.errors import ProcFormatError


def first_line(error: Exception) -> str:
    """Return the error on one line: the log of the kernel's verifier has hundreds of lines."""
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, BpfError | BtfError | OSError | ProcFormatError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
