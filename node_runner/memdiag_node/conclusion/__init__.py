"""The evidence document, from the measurements and their findings: pure functions, no I/O."""
