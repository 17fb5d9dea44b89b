"""Decisions: pure functions of one frozen snapshot and an explicit clock. Nothing here talks to anyone."""
