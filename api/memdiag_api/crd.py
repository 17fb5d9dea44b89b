"""CustomResourceDefinitions from the models: a strict converter from JSON Schema to a structural schema.

Kubernetes supports only a part of JSON Schema (apiextensions-apiserver: pkg/apis/apiextensions/v1/types_jsonschema.go).
A keyword that this converter does not know raises SchemaError, so that no constraint of a model is lost.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from memdiag_api.diagnosis import GROUP, VERSION, MemoryDiagnosis
from memdiag_api.model import ApiModel
from memdiag_api.report import MemoryDiagnosisReport

JsonSchema = Mapping[str, Any]

_COPIED = frozenset(
    {
        "default",
        "description",
        "enum",
        "format",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "required",
        "type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    }
)
# `title` repeats the name of the field. Pruning by Kubernetes has the effect of closed objects.
_DROPPED = frozenset({"$defs", "additionalProperties", "title"})


_INT64_BOUNDS = {"minimum": -(2**63), "maximum": 2**63 - 1}


class SchemaError(ValueError):
    """A model has something that a structural schema cannot express."""


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """Return the OpenAPI v3 structural schema of `model`, with references inlined.

    Raises SchemaError with the place and the keyword that cannot be converted.
    """
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}), model.__name__)


def _convert(schema: JsonSchema, definitions: JsonSchema, place: str) -> dict[str, Any]:
    resolved = _resolve(schema, definitions, place)
    converted: dict[str, Any] = {}
    for keyword, value in resolved.items():
        match keyword:
            case _ if keyword in _COPIED:
                converted[keyword] = deepcopy(value)  # otherwise YAML would write places of one type as aliases
            case "const":
                converted["enum"] = [value]
            case "properties":
                converted[keyword] = {
                    name: _convert(inner, definitions, f"{place}.{name}") for name, inner in value.items()
                }
            case "items":
                converted[keyword] = _convert(value, definitions, f"{place}[]")
            case "additionalProperties" if value is not False:
                converted[keyword] = _convert(value, definitions, f"{place}{{}}")
            case _ if keyword not in _DROPPED:
                raise SchemaError(f"{place}: Kubernetes' structural schemas have no {keyword!r} (value {value!r})")
    return _finish(converted, place)


def _finish(converted: dict[str, Any], place: str) -> dict[str, Any]:
    """Add what Kubernetes requires beyond JSON Schema: types, known formats, sentences for `kubectl explain`."""
    if "type" not in converted:
        raise SchemaError(f"{place}: a structural schema needs a type everywhere")
    if converted["type"] == "integer":
        converted["format"] = "int64"
        # Kubernetes stores limits as float64, which cannot represent these. The format implies them.
        for keyword, bound in _INT64_BOUNDS.items():
            if converted.get(keyword) == bound:
                del converted[keyword]
    if converted.get("format") not in (None, "int64", "date-time"):
        raise SchemaError(f"{place}: format {converted['format']!r} is not known to Kubernetes")
    if converted.get("default", ...) is None:
        del converted["default"]
    if "description" in converted:
        converted["description"] = _sentence(converted["description"])
    return converted


def _without_inner_defaults(schema: JsonSchema) -> dict[str, Any]:
    """Return `schema` with defaults at its top level only: they help users who write, but clutter results."""
    stripped = dict(schema)
    if "properties" in stripped:
        stripped["properties"] = {name: _without_defaults(part) for name, part in stripped["properties"].items()}
    if "items" in stripped:
        stripped["items"] = _without_defaults(stripped["items"])
    return stripped


def _without_defaults(schema: JsonSchema) -> dict[str, Any]:
    stripped = _without_inner_defaults(schema)
    stripped.pop("default", None)
    return stripped


def _resolve(schema: JsonSchema, definitions: JsonSchema, place: str) -> dict[str, Any]:
    """Return `schema` with `$ref` and "or null" resolved. Keywords next to them take precedence."""
    resolved = dict(schema)
    while True:
        if "$ref" in resolved:
            name = resolved.pop("$ref").removeprefix("#/$defs/")
            resolved = _merge(definitions[name], resolved)
        elif "anyOf" in resolved:
            alternatives = [one for one in resolved.pop("anyOf") if one != {"type": "null"}]
            if len(alternatives) != 1:
                raise SchemaError(f"{place}: of several alternatives, a structural schema can express only 'T or null'")
            resolved = _merge(alternatives[0], resolved)
        else:
            return resolved


def _merge(inner: JsonSchema, beside: JsonSchema) -> dict[str, Any]:
    merged = {**inner, **beside}
    rules = [*inner.get("x-kubernetes-validations", []), *beside.get("x-kubernetes-validations", [])]
    if rules:
        merged["x-kubernetes-validations"] = rules
    return merged


def _sentence(description: str) -> str:
    text = " ".join(description.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "!")) else ".")


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """One column of `kubectl get`."""

    name: str
    json_path: str
    description: str
    type: str = "string"
    priority: int = 0

    def to_json_object(self) -> dict[str, Any]:
        """Return the column as in a CustomResourceDefinition."""
        column = {"name": self.name, "type": self.type, "jsonPath": self.json_path, "description": self.description}
        return {**column, "priority": self.priority} if self.priority else column


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_DIAGNOSIS_COLUMNS = (
    PrinterColumn("Target", ".status.target", "The diagnosed nodes"),
    PrinterColumn(
        "Succeeded",
        _condition("Succeeded", "status"),
        "True if the run ended with a result, Unknown while it is in progress",
    ),
    PrinterColumn("Reason", _condition("Succeeded", "reason"), "Reason of the Succeeded condition"),
    PrinterColumn("Progress", ".status.progress", "Progress of the run"),
    PrinterColumn("Leak", _condition("LeakDetected", "status"), "Whether a leak was found"),
    PrinterColumn(
        "AllocPage",
        ".status.results[0].allocPage",
        "Memory that kernel code allocated directly from the page allocator",
    ),
    PrinterColumn("Finding", ".status.suspect", "The first finding"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", type="date"),
    PrinterColumn("Verdict", _condition("LeakDetected", "reason"), "The verdict", priority=1),
    PrinterColumn("Summary", ".status.summary", "The answer in one sentence", priority=1),
)
_REPORT_COLUMNS = (
    PrinterColumn("Diagnosis", ".diagnosis", "The MemoryDiagnosis that requested the report"),
    PrinterColumn("Node", ".nodeName", "The node that was measured"),
    PrinterColumn("Verdict", ".evidence.verdict.kind", "The answer in one word"),
    PrinterColumn("Finding", ".suspect", "The first finding"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", type="date"),
)


def custom_resource_definitions() -> dict[str, dict[str, Any]]:
    """Return all CustomResourceDefinitions of the group, by file name under crds/."""
    return {
        f"{GROUP}_{MemoryDiagnosis.PLURAL}.yaml": _definition(
            MemoryDiagnosis,
            _DIAGNOSIS_COLUMNS,
            subresources={"status": {}},
            selectable_fields=[".spec.target.nodeName"],
        ),
        f"{GROUP}_{MemoryDiagnosisReport.PLURAL}.yaml": _definition(
            MemoryDiagnosisReport, _REPORT_COLUMNS, selectable_fields=[".nodeName"]
        ),
    }


def _definition(
    model: type[MemoryDiagnosis] | type[MemoryDiagnosisReport],
    columns: tuple[PrinterColumn, ...],
    *,
    selectable_fields: list[str],
    subresources: dict[str, Any] | None = None,
) -> dict[str, Any]:
    schema = structural_schema(model)
    type_meta = {
        "apiVersion": {"type": "string", "description": "Version of the schema of this representation of the object."},
        "kind": {"type": "string", "description": "Kind of the object."},
        "metadata": {"type": "object"},  # the API server describes it
    }
    schema["properties"] = type_meta | {
        name: part if name == "spec" else _without_inner_defaults(part) for name, part in schema["properties"].items()
    }
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [column.to_json_object() for column in columns],
        "selectableFields": [{"jsonPath": path} for path in selectable_fields],
    }
    if subresources:
        version["subresources"] = subresources
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{model.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": model.KIND,
                "listKind": f"{model.KIND}List",
                "plural": model.PLURAL,
                "singular": model.SINGULAR,
                "shortNames": list(model.SHORT_NAMES),
            },
            "scope": "Cluster",
            "versions": [version],
        },
    }
