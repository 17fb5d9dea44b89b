"""Which slab objects are recorded: by their address, and by the size of their cache's objects."""

import numpy as np
import pytest

from memdiag_node.trace.objects import tables
from memdiag_node.trace.objects.sampling import alignment_bytes, filter_words, large_caches, size_class_bytes
from support.raw_objects import LINEAR_MAP, slab_cache

BYTES_PER_MINUTE = 1 << 20


@pytest.mark.parametrize(
    ("stride_bytes", "expected"),
    [
        (8, 0),
        (960, 0),
        (1023, 0),
        (1024, 1024),
        (1088, 1024),
        (2432, 2048),
        (4096, 4096),
        (9984, 4096),
        (1 << 24, 4096),
    ],
)
def test_the_class_of_a_size_is_the_power_of_two_below_it(stride_bytes: int, expected: int) -> None:
    assert size_class_bytes(np.array([stride_bytes], np.uint64)).tolist() == [expected]


@pytest.mark.parametrize("stride_bytes", [8, 64, 96, 192, 256, 640, 704, 1024, 1088, 2048, 2432, 3072, 4096, 9984])
def test_a_mib_leaves_at_least_sixty_records_whatever_its_objects_are(stride_bytes: int) -> None:
    """So that growth by 1 MiB per minute is known within 13 %, one standard error."""
    addresses = np.uint64(LINEAR_MAP) + np.arange(0, BYTES_PER_MINUTE, stride_bytes).astype(np.uint64)
    size = size_class_bytes(np.array([stride_bytes], np.uint64))
    shares = np.maximum(alignment_bytes(addresses), size) / tables.DENSEST_BYTES
    assert shares.sum() >= 60
    assert np.sqrt(np.sum(1 / shares - 1)) / len(addresses) <= 0.13


def test_only_caches_with_large_objects_that_are_not_aligned_are_listed_the_largest_first() -> None:
    caches = [slab_cache(stride_bytes=size, address=size) for size in (64, 1088, 1024, 9984, 4096, 2432)]
    assert large_caches(caches).tolist() == [(9984, 4096), (2432, 2048), (1088, 1024)]
    assert large_caches([]).tolist() == []


def test_no_more_caches_are_listed_than_the_map_holds() -> None:
    caches = [slab_cache(stride_bytes=1088, address=number) for number in range(1, 1000)]
    caches.append(slab_cache(stride_bytes=9984, address=1000))
    found = large_caches(caches)
    assert len(found) == tables.LARGE_CACHES
    assert found["key"][0] == 1000


def test_the_filter_has_a_bit_for_each_cache() -> None:
    addresses = np.array([0xFFFF888100042E00, 0xFFFF888100043000], np.uint64)
    assert sum(int(word).bit_count() for word in filter_words(addresses).tolist()) == 2
    assert filter_words(np.zeros(0, np.uint64)).tolist() == [0] * 16
