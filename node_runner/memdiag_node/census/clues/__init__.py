"""Clues to what untyped objects and unexplained page frames are."""
