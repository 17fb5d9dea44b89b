"""The evidence document and its verdict, from the measurements: pure functions, no I/O."""
