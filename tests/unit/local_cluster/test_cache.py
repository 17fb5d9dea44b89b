"""The cache: entries that are complete or absent, built once, and not kept forever."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from local_cluster.cache import IN_USE_SECONDS, KEPT_ENTRIES, Cache, content_key


def _write(content: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "content").write_text(content)

    return fill


def test_an_entry_is_built_once_and_then_found(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.entry("kind", "key", _write("first")) == (tmp_path / "kind/key", False)
    folder, cached = cache.entry("kind", "key", _write("second"))
    assert cached
    assert (folder / "content").read_text() == "first"


def test_a_failed_build_leaves_no_entry_and_the_next_one_starts_empty(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def fail_half_way(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("out of disk")

    with pytest.raises(RuntimeError, match="out of disk"):
        cache.entry("kind", "key", fail_half_way)
    folder, cached = cache.entry("kind", "key", _write("whole"))
    assert not cached
    assert [path.name for path in folder.iterdir()] == ["content"]
    assert [path.name for path in folder.parent.iterdir()] == ["key"]


def test_two_runs_at_once_build_an_entry_once(tmp_path: Path) -> None:
    builds: list[int] = []
    both = threading.Barrier(2)

    def fill(folder: Path) -> None:
        builds.append(1)
        time.sleep(0.2)
        (folder / "content").touch()

    def run() -> None:
        both.wait()
        folder, _ = Cache(tmp_path).entry("kind", "key", fill)
        assert (folder / "content").exists()

    runs = [threading.Thread(target=run) for _ in range(2)]
    for one in runs:
        one.start()
    for one in runs:
        one.join()
    assert len(builds) == 1


def test_only_the_newest_entries_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(KEPT_ENTRIES + 2):
        folder, _ = cache.entry("kind", str(number), _write(""))
        long_ago = time.time() - 2 * IN_USE_SECONDS + number
        os.utime(folder, (long_ago, long_ago))
    cache.entry("kind", "newest", _write(""))
    kept = {path.name for path in (tmp_path / "kind").iterdir()}
    assert kept == {"newest"} | {str(number) for number in range(3, KEPT_ENTRIES + 2)}


def test_an_entry_that_another_run_may_just_have_asked_for_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in range(KEPT_ENTRIES + 2):
        cache.entry("kind", str(number), _write(""))
    assert len(list((tmp_path / "kind").iterdir())) == KEPT_ENTRIES + 2


def test_clean_empties_the_cache_and_may_be_repeated(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = Cache(root)
    cache.entry("kind", "key", _write(""))
    cache.clean()
    assert not root.exists()
    cache.clean()


def test_the_key_depends_on_where_one_part_ends_and_the_next_starts(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("ab")
    assert content_key(["a", "b"]) != content_key(["ab"])
    assert content_key([file]) == content_key(["ab"])
    file.write_text("ac")
    assert content_key([file]) != content_key(["ab"])
