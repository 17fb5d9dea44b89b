"""Clues to what untyped objects and unexplained page frames are."""

from typing import Annotated

from pydantic import Field

from memdiag_api import limits
from memdiag_api.model import Sentence, ShortText
from memdiag_api.record import ByteCount, Count, Name, Record, Share


class Clue(Record):
    """Clue is a word that in many objects of one cache, or in many frames, points to the same thing."""

    subject: Name = Field(description='Name of the cache, or "frames of order N".')
    objects: Count = Field(description="Number of allocated objects of the cache, or of frames.")
    size_bytes: ByteCount = Field(description="Bytes of these objects. Those with this clue are the share of it.")
    sampled: Count = Field(description="Number of objects that were read, chosen at random.")
    share: Share = Field(description="Share of the read objects that have this clue.")
    offset_bytes: Count = Field(description="Offset of the word in the object.")
    points_to: Sentence = Field(
        description="What it points to: a function, an operations table, an object of a named cache, or the same cache."
    )
    module: ShortText = Field(default="", description="Kernel module of that function or table. Empty if in none.")


class FrameUse(Record):
    """FrameUse is a property that many unexplained page frames of one order have, by their struct page."""

    subject: Name = Field(description='"frames of order N".')
    sampled: Count = Field(description="Number of blocks that were read.")
    share: Share = Field(description="Share of them that have the property.")
    property: ShortText = Field(description="The property: page type, mapping, private data, charge, pool.")


class Clues(Record):
    """Clues are the words of untyped objects that tell what allocated them."""

    clues: Annotated[list[Clue], Field(max_length=limits.MAX_CLUES)] = Field(
        description="Clues by the size of what they explain, largest first."
    )
    frame_uses: Annotated[list[FrameUse], Field(max_length=limits.MAX_FRAME_USES)] = Field(
        default_factory=list, description="What the struct pages of unexplained frames say, by order."
    )
    sees_symbols: bool = Field(
        default=True, description="False if the kernel does not tell the names of functions to the runner."
    )
