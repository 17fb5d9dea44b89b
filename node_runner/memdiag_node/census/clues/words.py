"""What the words of a sample of objects have in common (no input or output but through the census).

The words are read to be counted: only what they point to is kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from memdiag_node.census.clues.naming import AddressName, AddressNames, Meaning
from memdiag_node.census.slab_caches.purposes import has_purpose, is_untyped, purpose
from memdiag_node.slab.census import SlabCensus

MIN_SHARE = 0.2
"""Of a clue: an untyped cache is a mixture of types."""
_MOST = 0.5
_WORD_BYTES = 8
_VALUES_OF_WORD = 8
_MIN_VALUE_SHARE = 0.02
_KERNEL_HALF, _HALF_SHIFT = 0xFF, 56
_SMALL_NEGATIVE = (1 << 64) - (1 << 16)


class Rank(IntEnum):
    """How much a clue says. Higher is better."""

    ADDRESS = 0
    """The same address, of which nothing is known, or the same cache."""
    DATA = 1
    """A place inside a function or an object."""
    TYPED_OBJECT = 2
    SYMBOL = 3
    """A function, an operations table, or a module."""


@dataclass(frozen=True, slots=True)
class WordClue:
    """A word that in many objects points to the same thing."""

    rank: Rank
    offset_bytes: int
    share: float
    text: str
    module: str = ""
    cache: int = -1
    """Number of the cache of the objects that it points to; -1 for none."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Words of a random sample of objects, or of blocks of frames."""

    objects: npt.NDArray[np.uint64]
    """Their addresses."""
    words: npt.NDArray[np.uint64]
    """One row for each object."""
    cache: int
    """Number of their cache; -1 for frames."""


def read_words(census: SlabCensus, objects: npt.NDArray[np.uint64], words: int) -> npt.NDArray[np.uint64]:
    """The first words of each object: one row for each."""
    slots = objects[:, np.newaxis] + np.arange(0, words * _WORD_BYTES, _WORD_BYTES, dtype="<u8")
    return census.memory.peek(slots.reshape(-1)).reshape(slots.shape)


def find_clues(census: SlabCensus, sample: Sample, names: AddressNames) -> list[WordClue]:
    """The clues in the words of a sample, best first."""
    words = sample.words
    is_pointer = (words >> np.uint64(_HALF_SHIFT) == np.uint64(_KERNEL_HALF)) & (words < np.uint64(_SMALL_NEGATIVE))
    in_linear = is_pointer & (words - np.uint64(census.linear_base) < np.uint64(_linear_bytes(census)))
    enough = MIN_SHARE * len(words)
    clues: list[WordClue] = []
    common: dict[int, list[tuple[int, float]]] = {}
    for column in np.flatnonzero((is_pointer & ~in_linear).sum(axis=0) >= enough).tolist():
        values = words[:, column][is_pointer[:, column] & ~in_linear[:, column]]
        common[column] = _most_common(values, len(words))
    named = names.names(list(dict.fromkeys(value for values in common.values() for value, _ in values)))
    for column, values in common.items():
        clues += _symbol_clues(column * _WORD_BYTES, values, named)
    clues += _object_clues(census, sample, in_linear & (in_linear.sum(axis=0) >= enough))
    return best_clues(clues)


def best_clues(clues: Collection[WordClue]) -> list[WordClue]:
    """The clues by rank and share, each text once."""
    ordered = sorted(clues, key=lambda clue: (-clue.rank, -clue.share, clue.offset_bytes))
    return list({clue.text: clue for clue in reversed(ordered)}.values())[::-1]


def _linear_bytes(census: SlabCensus) -> int:
    """A length of the linear map up to the last slab: what is found beyond is not an object."""
    table = census.slabs.table
    return (int(table["frame"][-1]) + 1 << census.at["PAGE_SHIFT"]) + (1 << 30) if len(table) else 0


def _most_common(values: npt.NDArray[np.uint64], objects: int) -> list[tuple[int, float]]:
    """The most common values with their shares of all objects."""
    distinct, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts)[:_VALUES_OF_WORD]
    shares = (counts[order] / objects).tolist()
    pairs = zip(distinct[order].tolist(), shares, strict=True)
    return [(value, share) for value, share in pairs if share >= _MIN_VALUE_SHARE]


def _symbol_clues(offset: int, values: Sequence[tuple[int, float]], named: dict[int, AddressName]) -> list[WordClue]:
    """Clues of a word outside the linear map: single addresses, and different addresses in one module."""
    clues, by_module = [], dict[str, float]()
    for value, share in values:
        name = named[value]
        if name.module:
            by_module[name.module] = by_module.get(name.module, 0) + share
        if share < MIN_SHARE:
            continue
        if name.meaning is Meaning.NOTHING:
            if share >= _MOST:
                clues.append(WordClue(Rank.ADDRESS, offset, share, "the same address, which has no name"))
            continue
        rank = Rank.DATA if name.meaning is Meaning.DATA else Rank.SYMBOL
        clues.append(WordClue(rank, offset, share, name.text, name.module))
    single = {clue.module for clue in clues}
    clues += [
        WordClue(Rank.SYMBOL, offset, min(1.0, share), f"functions or data of module {module}", module)
        for module, share in by_module.items()
        if share >= MIN_SHARE and module not in single
    ]
    return clues


def _object_clues(census: SlabCensus, sample: Sample, mask: npt.NDArray[np.bool_]) -> list[WordClue]:
    """Clues of the words that are pointers into the linear map: to itself, to one object, to objects of one cache."""
    rows, columns = np.nonzero(mask)
    values = sample.words[rows, columns]
    starts, slabs = census.find(values)
    if not (slabs >= 0).any():
        return []
    caches = np.where(slabs >= 0, census.slabs.table["cache"][slabs], -1)
    to_own = (starts == sample.objects[rows]) & (slabs >= 0)
    clues: list[WordClue] = []
    for column in np.unique(columns[slabs >= 0]).tolist():
        chosen = columns == column
        offset, to_itself = column * _WORD_BYTES, float(to_own[chosen].sum()) / len(sample.objects)
        if sample.cache >= 0 and to_itself >= _MOST:
            clues.append(WordClue(Rank.ADDRESS, offset, to_itself, "itself, as an empty list does"))
        else:
            clues += _cache_clues(census, sample, offset, starts[chosen], caches[chosen])
    return clues


def _cache_clues(
    census: SlabCensus,
    sample: Sample,
    offset: int,
    starts: npt.NDArray[np.uint64],
    caches: npt.NDArray[np.int32],
) -> list[WordClue]:
    """Clues of one word, by the objects (0 for none) and the caches (-1) that it points to."""
    clues, total = [], len(sample.objects)
    numbers, counts = np.unique(caches[caches >= 0], return_counts=True)
    for number, share in zip(numbers.tolist(), (counts / total).tolist(), strict=True):
        if share < MIN_SHARE or (share < _MOST and not has_purpose(census.caches[number].name)):
            continue
        most = next(iter(_most_common(starts[caches == number], total)), (0, 0.0))
        clues.append(_cache_clue(census, sample.cache, number, offset, share, is_one=most[1] >= _MOST))
    return clues


def _cache_clue(census: SlabCensus, own: int, number: int, offset: int, share: float, *, is_one: bool) -> WordClue:
    name = census.caches[number].name
    if number == own:
        return WordClue(Rank.ADDRESS, offset, share, f"objects of the same cache ({name}), as a list does", "", number)
    meaning = purpose(name, 0).removeprefix("0 ").split(":")[0]
    objects = f"one object of {name}" if is_one else f"objects of {name}"
    if meaning and census.caches[number].is_merged:
        meaning += ", or of a cache that is merged with it"
    text = f"{objects} ({meaning})" if meaning else objects
    return WordClue(Rank.ADDRESS if is_untyped(name) else Rank.TYPED_OBJECT, offset, share, text, "", number)
