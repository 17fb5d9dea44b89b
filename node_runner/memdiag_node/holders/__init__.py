"""Kinds of holders: what keeps page blocks from being freed."""
