"""Decisions: pure functions of one frozen snapshot and an explicit clock, without I/O."""
