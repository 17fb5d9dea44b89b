"""Clues to what the objects of untyped caches are: words that in many of them point to the same thing.

The technique is that of experts with a crash dump: a function pointer, an operations table or a typed object in the
same place of most objects shows which part of the kernel, or which module, allocated them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memdiag_api import limits
from memdiag_api.census.clues import Clue, Clues
from memdiag_node.census.clues.frame_clues import FrameFindings, frame_use_records
from memdiag_node.census.clues.naming import AddressNames
from memdiag_node.census.clues.words import MIN_SHARE, Rank, Sample, WordClue, find_clues, read_words
from memdiag_node.census.slab_caches.object_charges import charge_layout, charge_vectors
from memdiag_node.census.slab_caches.purposes import has_purpose, is_untyped
from memdiag_node.kernel.btf import Btf
from memdiag_node.slab.census import CacheCount, SlabCensus

MIN_BYTES = 256 * 1024
"""Of the allocated objects of a cache that is read."""
MAX_CACHES = 32
_MAX_SAMPLE, _MIN_SAMPLE, _MAX_WORDS = 1024, 256, 64
_SAMPLE_WORDS = 1 << 15
_FEWEST_OBJECTS = 8
_FEWEST_SLABS = 128
_SAMPLE_PLACES = 1 << 16
_CLUES_OF_CACHE = 3
_MOST = 0.5
_SEED = 1
_VECTORS = "memory cgroups: they are the vectors of charges of slab objects"


@dataclass(frozen=True, slots=True)
class SubjectClues:
    """The clues of one cache, or of frames of one order, best first."""

    subject: str
    objects: int
    size_bytes: int
    sampled: int
    clues: tuple[WordClue, ...]


def fields(btf: Btf) -> dict[str, int]:
    """The offsets that `read_clues` needs, as far as this kernel has them."""
    return charge_layout(btf)


def read_clues(
    census: SlabCensus,
    at: Mapping[str, int],
    names: AddressNames,
    *,
    min_bytes: int = MIN_BYTES,
    max_caches: int = MAX_CACHES,
) -> list[SubjectClues]:
    """The clues of all untyped caches, and of others whose purpose is not known, with `min_bytes` of objects.

    `at` is the result of `fields`. Figures are scaled to the node where the census is a sample.
    """
    rng = np.random.default_rng(_SEED)
    counts = census.count()
    sizes = [count.in_use * cache.stride_bytes for cache, count in zip(census.caches, counts, strict=True)]
    chosen = [
        number
        for number, cache in enumerate(census.caches)
        if sizes[number] >= min_bytes and (is_untyped(cache.name) or not has_purpose(cache.name))
    ]
    chosen = sorted(chosen, key=lambda number: -sizes[number])[:max_caches]
    vectors = charge_vectors(census, at)
    found = []
    for number in chosen:
        sample = _read_sample(census, number, counts[number], rng)
        if len(sample.objects) >= _FEWEST_OBJECTS:
            found.append(_clues_of_cache(census, sample, counts[number], names, vectors))
    return found


def _read_sample(census: SlabCensus, number: int, count: CacheCount, rng: np.random.Generator) -> Sample:
    """Random objects of a cache (its number), without those that were freed meanwhile."""
    cache = census.caches[number]
    words = max(1, min(_MAX_WORDS, cache.object_bytes // 8))
    wanted = max(_MIN_SAMPLE, min(_MAX_SAMPLE, _SAMPLE_WORDS // words))
    places = max(1, count.objects // max(1, count.slabs))
    # Objects of one slab are often of one type: few of each of many slabs say more than all of a few.
    objects = census.sample(number, max(_FEWEST_SLABS, min(wanted, _SAMPLE_PLACES // places)), rng)
    if len(objects) > wanted:
        objects = np.sort(rng.choice(objects, wanted, replace=False))
    read = read_words(census, objects, words)
    kept = census.still_allocated(number, objects)
    return Sample(objects[kept], read[kept], number)


def _clues_of_cache(
    census: SlabCensus, sample: Sample, count: CacheCount, names: AddressNames, vectors: npt.NDArray[np.uint64]
) -> SubjectClues:
    cache = census.caches[sample.cache]
    place = np.searchsorted(vectors, sample.objects)  # both ascend
    is_vector = np.append(vectors, np.uint64(0))[place] == sample.objects
    sample.words[is_vector] = 0  # known: the other objects of the cache have other clues
    clues = find_clues(census, sample, names)
    if is_vector.mean() >= MIN_SHARE:
        clues = [WordClue(Rank.SYMBOL, 0, float(is_vector.mean()), _VECTORS), *clues]
    scale = 1 / census.sampled_share if census.sampled_share > 0 else 0.0
    return SubjectClues(
        cache.name,
        round(scale * count.in_use),
        round(scale * count.in_use) * cache.stride_bytes,
        len(sample.objects),
        tuple(_with_next(census, sample, clues, names)[:_CLUES_OF_CACHE]),
    )


def _with_next(census: SlabCensus, sample: Sample, clues: list[WordClue], names: AddressNames) -> list[WordClue]:
    """The clues, with the best one of the untyped objects to which most objects point, unless a symbol is known."""
    if any(clue.rank is Rank.SYMBOL and clue.share >= _MOST for clue in clues):
        return clues
    for place, clue in enumerate(clues):
        if clue.cache in (-1, sample.cache) or clue.share < _MOST or not is_untyped(census.caches[clue.cache].name):
            continue
        starts, slabs = census.find(sample.words[:, clue.offset_bytes // 8])
        is_inside = slabs >= 0
        is_inside[is_inside] = census.slabs.table["cache"][slabs[is_inside]] == clue.cache
        targets = np.unique(starts[is_inside])[:_MIN_SAMPLE]
        words = max(1, min(_MAX_WORDS, census.caches[clue.cache].object_bytes // 8))
        further = find_clues(census, Sample(targets, read_words(census, targets, words), clue.cache), names)
        best = next((one for one in further if one.rank is Rank.SYMBOL and one.share >= _MOST), None)
        if best:
            text = f"{clue.text}, which point at +{best.offset_bytes} to {best.text}"
            better = WordClue(Rank.SYMBOL, clue.offset_bytes, clue.share * best.share, text, best.module, clue.cache)
            return [better, *clues[:place], *clues[place + 1 :]]
    return clues


def clues_record(found: Sequence[SubjectClues], frames: FrameFindings | None, *, sees_symbols: bool) -> Clues:
    """The record: clues that name something first, then by the bytes that they explain."""
    subjects = [*found]
    if frames:
        subjects += [
            SubjectClues(one.subject, one.blocks, one.size_bytes, one.sampled, one.clues) for one in frames.orders
        ]
    pairs = [(one, clue) for one in subjects for clue in one.clues]
    pairs.sort(key=lambda pair: (pair[1].rank is Rank.ADDRESS, -pair[1].share * pair[0].size_bytes))
    return Clues(
        clues=[
            Clue(
                subject=one.subject,
                objects=one.objects,
                size_bytes=one.size_bytes,
                sampled=one.sampled,
                share=min(1.0, clue.share),
                offset_bytes=clue.offset_bytes,
                points_to=clue.text[: limits.MAX_SENTENCE],
                module=clue.module[: limits.MAX_SHORT_TEXT],
            )
            for one, clue in pairs[: limits.MAX_CLUES]
        ],
        frame_uses=frame_use_records(frames),
        sees_symbols=sees_symbols,
    )
