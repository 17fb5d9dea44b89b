"""Fast copies of a folder: files that are never changed in place are shared as hard links."""

import shutil
from pathlib import Path

from local_cluster.shell import run
from local_cluster.steps import StepError

# containerd's databases (bbolt) are written in place; its blobs and its unpacked layers never are.
_WRITTEN_IN_PLACE = "*.db"


def copy_tree(source: Path, target: Path) -> None:
    """Copy `source` to `target`, which must not exist yet; across file systems, without hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        run(["cp", "--archive", "--link", source, target])
    except StepError:
        shutil.rmtree(target, ignore_errors=True)
        run(["cp", "--archive", source, target])
        return
    for database in target.rglob(_WRITTEN_IN_PLACE):
        own = database.with_suffix(".own")
        shutil.copy2(database, own)
        own.replace(database)
