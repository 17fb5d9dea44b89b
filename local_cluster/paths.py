"""Locations of the checkout, the cache and the state of running clusters (XDG Base Directory Specification)."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PACKAGE = Path(__file__).resolve().parent


def cache_root() -> Path:
    """Everything that can be built again; safe to delete while nothing runs."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def state_root() -> Path:
    """One folder per running cluster."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def _xdg(variable: str, default: str) -> Path:
    base = os.environ.get(variable, "")
    # The specification: relative paths are invalid and must be ignored.
    return (Path(base) if base.startswith("/") else Path.home() / default) / "memdiag"
