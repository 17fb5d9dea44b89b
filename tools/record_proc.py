"""Record this machine's kernel text files as a test fixture: `record_proc.py TARGET_FOLDER`, as root.

TARGET_FOLDER becomes a root directory with proc/ and sys/ in it. Numbers are not changed; kernel addresses, the boot ID
and log lines that are not parsed are not recorded.
"""

import re
import sys
from pathlib import Path

from memdiag_node.breakdown.surroundings import read_kernel_log

FILES = (
    "proc/meminfo",
    "proc/zoneinfo",
    "proc/vmstat",
    "proc/vmallocinfo",
    "proc/sys/kernel/osrelease",
    "proc/self/status",
    "sys/devices/system/cpu/online",
    "sys/devices/system/cpu/possible",
    "sys/kernel/mm/transparent_hugepage/hpage_pmd_size",
)
FILE_PATTERNS = ("bus/virtio/drivers/virtio_balloon/virtio*/features",)
NO_BOOT_ID = "00000000-0000-0000-0000-000000000000\n"
ADDRESS_RANGE = re.compile(rb"^0x[0-9a-f]+-0x[0-9a-f]+", re.MULTILINE)
PHYSICAL_ADDRESS = re.compile(rb"\bphys=0x[0-9a-f]+")


def record(machine: Path, target: Path, kernel_log: bytes | None) -> list[Path]:
    """Copy those of the files that exist below `machine` to `target`; returns the copies."""
    sources = [machine / name for name in FILES]
    sources += [path for pattern in FILE_PATTERNS for path in sorted((machine / "sys").glob(pattern))]
    contents = {path.relative_to(machine): path.read_bytes() for path in sources if path.exists()}
    contents[Path("proc/sys/kernel/random/boot_id")] = NO_BOOT_ID.encode()
    if kernel_log is not None:
        contents[Path("kernel_log")] = b"".join(
            line for line in kernel_log.splitlines(keepends=True) if b"percpu" in line
        )
    copies = []
    for name, content in contents.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(scrub(content) if name.name == "vmallocinfo" else content)
        copies.append(copy)
    return copies


def scrub(vmallocinfo: bytes) -> bytes:
    """Remove the addresses from /proc/vmallocinfo."""
    return PHYSICAL_ADDRESS.sub(b"phys=0x0", ADDRESS_RANGE.sub(b"0x0-0x0", vmallocinfo))


def main() -> None:
    """Record the files, and print their paths."""
    if len(sys.argv) != 2:  # noqa: PLR2004 - the command and its one argument
        sys.exit(__doc__)
    for copy in record(Path("/"), Path(sys.argv[1]), read_kernel_log()):
        print(copy)


if __name__ == "__main__":
    main()
