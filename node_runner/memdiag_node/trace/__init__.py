"""Allocations in a window: who allocates and does not free."""
