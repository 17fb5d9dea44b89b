"""Memory of a graphics device's buffers, from the fdinfo of its fds (kernel: Documentation/gpu/drm-usage-stats.rst)."""

import re
from dataclasses import dataclass, field

from memdiag_node.procfs.errors import ProcFormatError

_KEY = re.compile(rb"drm-(total|resident|shared|memory)-([a-z0-9_]+)")
_VALUE = re.compile(rb"(\d{1,19})(?: (KiB|MiB))?")
_UNITS = {b"": 1, b"KiB": 1 << 10, b"MiB": 1 << 20}
_MAX_REGIONS = 32


@dataclass(frozen=True, slots=True)
class DrmRegion:
    """The buffers of one client in one region of memory: of the device (vram) or of the node (system, gtt)."""

    total_bytes: int = 0
    resident_bytes: int = 0
    shared_bytes: int = 0
    """The part of total_bytes that other clients have too."""


@dataclass(frozen=True, slots=True)
class DrmClient:
    """The client behind one fd. Several fds of the same device with the same id are one client."""

    driver: str
    device: str
    client_id: str
    """A number; text here, since it only distinguishes clients."""
    regions: dict[str, DrmRegion] = field(default_factory=dict)


def parse_drm_fdinfo(text: bytes, *, source: str = "fdinfo") -> DrmClient | None:
    """Read the client of an fd; None if the text is not that of a graphics device.

    `drm-memory-REGION` is the older name of `drm-resident-REGION`. Raises ProcFormatError naming `source`, the line and
    its text.
    """
    sizes: dict[str, dict[str, int]] = {}
    named = {b"drm-driver": b"", b"drm-pdev": b"", b"drm-client-id": b""}
    for number, line in enumerate(text.splitlines(), start=1):
        key, _, rest = line.partition(b":")
        value = rest.strip()
        if key in named:
            named[key] = value
        elif (match := _KEY.fullmatch(key)) is not None:
            size = _VALUE.fullmatch(value)
            if size is None:
                raise ProcFormatError(source, number, line, "a size in bytes, KiB or MiB")
            kind, region = match[1].decode(), match[2].decode()
            if region in sizes or len(sizes) < _MAX_REGIONS:
                sizes.setdefault(region, {})[kind] = int(size[1]) * _UNITS[size[2] or b""]
    if not named[b"drm-driver"]:
        return None
    return DrmClient(
        driver=named[b"drm-driver"].decode("ascii", "replace"),
        device=named[b"drm-pdev"].decode("ascii", "replace"),
        client_id=named[b"drm-client-id"].decode("ascii", "replace"),
        regions={
            region: DrmRegion(
                total_bytes=of.get("total", 0),
                resident_bytes=of.get("resident", of.get("memory", 0)),
                shared_bytes=of.get("shared", 0),
            )
            for region, of in sizes.items()
        },
    )
