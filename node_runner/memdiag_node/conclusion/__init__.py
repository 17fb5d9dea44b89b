"""From records to the evidence document and its verdict: pure functions, no I/O."""
