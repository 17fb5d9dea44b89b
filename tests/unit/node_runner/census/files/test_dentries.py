"""Counts of the directory cache: lengths of names, scaling, the record."""

import numpy as np
import pytest

from memdiag_api import limits
from memdiag_node.census.files.dentries import FoundShare, RawDentries, dentries_record, name_bytes
from memdiag_node.census.files.super_blocks import FileSystem
from memdiag_node.render.dentries import dentries_lines
from memdiag_node.render.text import WIDTH

EXT4 = FileSystem("ext4", "vda", is_internal=False)


def raw(*, read: int = 1_000_000, sampled_share: float = 1.0) -> RawDentries:
    return RawDentries(
        entries=1_000_000,
        slab_bytes=192_000_000,
        entry_bytes=192,
        read=read,
        negative=read // 4,
        unused=read // 2,
        long_names_bytes=read,
        systems=[FoundShare(EXT4, "/", read, read // 4)],
        directories=[FoundShare(EXT4, f"/srv/{number}", read // 20, read // 20) for number in range(16)],
        sampled_share=sampled_share,
    )


@pytest.mark.parametrize(("length", "expected"), [(40, 64), (47, 64), (48, 96), (200, 256), (255, 512), (1 << 31, 512)])
def test_a_long_name_takes_an_object_of_kmalloc(length: int, expected: int) -> None:
    assert name_bytes(np.array([length], "<u8")) == expected


def test_counts_of_a_sample_are_scaled_to_all_entries() -> None:
    all_read, sample = dentries_record(raw()), dentries_record(raw(read=100_000))
    assert sample.model_copy(update={"sampled_share": 1.0}) == all_read
    assert sample.sampled_share == pytest.approx(0.1)
    assert (all_read.negative, all_read.negative_bytes) == (250_000, 48_000_000)


def test_counts_of_a_part_of_memory_are_scaled_to_all_of_it() -> None:
    record = dentries_record(raw(sampled_share=0.5))
    assert (record.entries, record.size_bytes, record.negative) == (2_000_000, 384_000_000, 500_000)


def test_the_record_is_small_and_its_lines_are_short() -> None:
    record = dentries_record(raw(read=100_000))
    assert len(record.directories) == limits.MAX_DENTRY_SHARES
    lines = dentries_lines(record)
    assert lines[0] == "DIRECTORY CACHE   1000000 names in 183 MiB, from 10.0% of them"
    assert any(line.split() == ["50000", "5.0", "%", "100.0", "%", "/srv/0"] for line in lines)
    assert max(map(len, lines)) <= WIDTH
    assert dentries_lines(record.model_copy(update={"size_bytes": 1000})) == []
