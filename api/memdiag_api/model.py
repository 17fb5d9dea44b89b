"""The base class of all models: snake_case in Python, camelCase in JSON as in the Kubernetes API."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints

from memdiag_api.limits import MAX_SENTENCE, MAX_SHORT_TEXT

ShortText = Annotated[str, StringConstraints(max_length=MAX_SHORT_TEXT)]
Sentence = Annotated[str, StringConstraints(max_length=MAX_SENTENCE)]

# Words that are written in capitals inside a Kubernetes name (API conventions, "Naming conventions").
_INITIALISMS = {"id": "ID", "ids": "IDs", "uid": "UID", "ip": "IP"}


def kubernetes_name(name: str) -> str:
    """Return the JSON name of a field: `pod_uid` is `podUID`, `run_id` is `runID`, `size_bytes` is `sizeBytes`."""
    head, *rest = name.split("_")
    return head + "".join(_INITIALISMS.get(word, word.capitalize()) for word in rest)


class ApiModel(BaseModel):
    """A part of a custom resource or of the evidence document."""

    model_config = ConfigDict(alias_generator=kubernetes_name, populate_by_name=True)

    def to_json_object(self) -> dict[str, Any]:
        """Return plain JSON values under their JSON names, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
