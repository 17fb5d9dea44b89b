"""From records to findings: pure functions, no I/O."""
