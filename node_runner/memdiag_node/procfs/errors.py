"""The error that all parsers of kernel text raise."""


class ProcFormatError(ValueError):
    """A kernel text file does not match its format.

    It has the file (`source`), the line (`line_number`, from 1; 0 for the whole file), its text, and what was expected.
    """

    def __init__(self, source: str, line_number: int, line: bytes, expected: str) -> None:
        self.source = source
        self.line_number = line_number
        self.text = line[:200].decode(errors="backslashreplace")
        place = f"{source}:{line_number}" if line_number else source
        super().__init__(f"{place}: expected {expected}, found {self.text!r}")
