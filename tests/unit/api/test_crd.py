"""The converter from models to structural schemas, and the generated files."""

from typing import Annotated, Any

import pytest
from pydantic import Field

from memdiag_api.crd import SchemaError, custom_resource_definitions, structural_schema
from memdiag_api.model import ApiModel
from tools.generate_crds import rendered


class Inner(ApiModel):
    """An inner part"""

    size_bytes: int = 3


def schema_of(**fields: Any) -> dict[str, Any]:
    """The properties of a model with these fields."""
    model = type("Model", (ApiModel,), {"__doc__": "a model", "__annotations__": fields})
    properties: dict[str, Any] = structural_schema(model)["properties"]
    return properties


def test_references_are_inlined_and_descriptions_are_sentences() -> None:
    part = schema_of(inner=Inner)["inner"]
    assert "$ref" not in str(part)
    assert part["description"] == "An inner part."
    assert part["properties"]["sizeBytes"] == {"default": 3, "type": "integer", "format": "int64"}


def test_an_optional_field_may_be_absent() -> None:
    assert schema_of(name=str | None)["name"] == {"type": "string"}


def test_bounds_that_float64_cannot_represent_are_left_to_the_format() -> None:
    wide = Annotated[int, Field(ge=0, le=2**63 - 1)]
    assert schema_of(count=wide)["count"] == {"type": "integer", "format": "int64", "minimum": 0}


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        pytest.param(Annotated[int, Field(gt=3)], "exclusiveMinimum", id="bounds that Kubernetes does not know"),
        pytest.param(tuple[int, str], "prefixItems", id="tuples"),
        pytest.param(Annotated[str, Field(examples=["a"])], "examples", id="examples"),
        pytest.param(int | str, "only 'T or null'", id="alternatives"),
        pytest.param(Any, "needs a type", id="anything"),
        pytest.param(Annotated[str, Field(json_schema_extra={"format": "ipv7"})], "ipv7", id="formats"),
        pytest.param(Annotated[str, Field(deprecated=True)], "deprecated", id="deprecation"),
    ],
)
def test_what_a_structural_schema_cannot_express_is_rejected_with_its_place(annotation: Any, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason) as caught:
        schema_of(field=annotation)
    assert "Model.field" in str(caught.value)


def test_the_files_in_crds_match_the_models() -> None:
    for path, text in rendered().items():
        assert path.read_text() == text, f"{path.name} differs from the models: run `make crds`"


def places(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every place of a schema, with its path."""
    found = [(path, schema)]
    for name, part in schema.get("properties", {}).items():
        found += places(part, f"{path}.{name}")
    if "items" in schema:
        found += places(schema["items"], f"{path}[]")
    return found


@pytest.mark.parametrize("definition", custom_resource_definitions().values(), ids=lambda one: one["metadata"]["name"])
def test_results_have_no_defaults_and_lists_are_bounded(definition: dict[str, Any]) -> None:
    (version,) = definition["spec"]["versions"]
    for path, schema in places(version["schema"]["openAPIV3Schema"]):
        if schema.get("type") == "array":
            assert "maxItems" in schema, f"{path} may grow without end"
        if path.count(".") > 1 and not path.startswith(".spec"):
            assert "default" not in schema, f"{path} would be filled in by the API server"


def test_a_stored_status_does_not_count_as_finished_before_an_operator_has_seen_it() -> None:
    schema = custom_resource_definitions()["memdiag.dev_memorydiagnoses.yaml"]["spec"]["versions"][0]["schema"]
    assert schema["openAPIV3Schema"]["properties"]["status"]["default"] == {"observedGeneration": -1}
