"""The report of guest_slab_census.py against the kernel's own figures in it."""

from typing import Any

_SHARE = 0.01
_MOMENT_OBJECTS = 16  # the readings are some milliseconds apart: in an idle guest, up to 8 objects differed


def check_caches(slabs: dict[str, Any]) -> None:
    """Each large cache has as many places and objects as slabinfo says, or as many more or fewer as changed meanwhile.

    What was there before slabinfo was read and after, it has counted. It calls free objects on a CPU's list active.
    """
    assert slabs["caches"]
    for name, one in slabs["caches"].items():
        allowed = _SHARE * max(one["slabinfo_places"], one["slabinfo_places_before"])
        assert one["kept_places"] <= one["slabinfo_places"] + allowed, (name, one)
        fewest = min(one["slabinfo_places"], one["slabinfo_places_before"])
        assert one["places"] >= fewest - allowed, (name, one)
        most = (1 + _SHARE) * one["slabinfo_active"] + one["slabinfo_uncertain"] + _MOMENT_OBJECTS
        assert one["kept"] <= most, (name, one)
        changed = abs(one["slabinfo_active"] - one["slabinfo_active_before"])
        difference = abs(one["listed"] - one["in_use"])
        assert difference <= _SHARE * one["in_use"] + changed + _MOMENT_OBJECTS, (name, one)
