"""What all parts of the evidence document have in common: bounded numbers and texts, and strict records."""

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from memdiag_api.model import ApiModel

Name = Annotated[str, StringConstraints(max_length=253)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]
ByteCount = Annotated[int, Field(ge=0, le=2**63 - 1, description="Size in bytes.")]
SignedByteCount = Annotated[
    int, Field(ge=-(2**63), le=2**63 - 1, description="Size in bytes. Negative for a decrease.")
]
Share = Annotated[float, Field(ge=0, le=1, description="A share, from 0 to 1.", allow_inf_nan=False)]


class Record(ApiModel):
    """A part of the document: immutable, unknown fields are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")
