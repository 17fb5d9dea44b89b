"""Build results, kept outside the checkout and found by a hash of the content that they were built from.

An entry appears under its final name only when it is complete, so that a killed build leaves nothing that looks
finished; with one lock per kind, two runs at the same time build it only once.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from local_cluster.locks import exclusive

KEPT_ENTRIES = 3
PARTIAL = ".partial"
# Another run may be about to copy an entry that it has just looked up.
IN_USE_SECONDS = 600.0


@dataclass(frozen=True)
class Cache:
    """The cache folder: `root/KIND/KEY/`, and `root/logs/` with the build logs."""

    root: Path

    def log(self, name: str) -> Path:
        """The log of the build `name`."""
        return self.root / "logs" / f"{name}.log"

    def entry(self, kind: str, key: str, fill: Callable[[Path], None]) -> tuple[Path, bool]:
        """The folder of `key`, built by `fill(folder)` if needed, and whether it existed already.

        Of the same kind, only the newest few entries are kept.
        """
        final = self.root / kind / key
        if _found(final):
            return final, True
        with exclusive(self._lock(kind)):
            if _found(final):  # another run built it while we waited
                return final, True
            for abandoned in final.parent.glob(f"*{PARTIAL}"):
                shutil.rmtree(abandoned)
            partial = final.with_name(key + PARTIAL)
            partial.mkdir(parents=True)
            self.log(kind).unlink(missing_ok=True)
            fill(partial)
            partial.rename(final)
            os.utime(final)
            self._prune(kind)
        return final, False

    def clean(self) -> None:
        """Delete everything, after waiting for builds in progress."""
        with ExitStack() as locks:
            for lock in sorted((self.root / "locks").glob("*.lock")):
                locks.enter_context(exclusive(lock))
            if self.root.exists():
                shutil.rmtree(self.root)

    def _prune(self, kind: str) -> None:
        entries = sorted((self.root / kind).iterdir(), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for old in entries[KEPT_ENTRIES:]:
            if time.time() - old.stat().st_mtime > IN_USE_SECONDS:
                shutil.rmtree(old)

    def _lock(self, kind: str) -> Path:
        return self.root / "locks" / f"{kind}.lock"


def _found(entry: Path) -> bool:
    """Whether the entry exists; if so, it is marked as used now."""
    try:
        os.utime(entry)
    except FileNotFoundError:
        return False
    return True


def content_key(parts: Iterable[str | Path]) -> str:
    """A short hash of strings and of the contents of files (given as paths)."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode()
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
