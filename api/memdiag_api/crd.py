"""CustomResourceDefinitions from the models: one strict converter from JSON Schema to a structural schema.

Kubernetes knows only a part of JSON Schema (apiextensions-apiserver: pkg/apis/apiextensions/v1/types_jsonschema.go).
A keyword that this converter does not know raises SchemaError, so that nothing a model promises is lost on the way.
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
# `title` repeats the field's name; closed objects are what Kubernetes' pruning does anyway.
_DROPPED = frozenset({"$defs", "additionalProperties", "title"})


_INT64_BOUNDS = {"minimum": -(2**63), "maximum": 2**63 - 1}


class SchemaError(ValueError):
    """A model says something that a structural schema cannot carry."""


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The OpenAPI v3 structural schema of `model`, references inlined.

    Raises SchemaError naming the place and the keyword that cannot be carried over.
    """
    schema = model.model_json_schema(by_alias=True)
    return _convert(schema, schema.get("$defs", {}), model.__name__)


def _convert(schema: JsonSchema, definitions: JsonSchema, place: str) -> dict[str, Any]:
    resolved = _resolve(schema, definitions, place)
    converted: dict[str, Any] = {}
    for keyword, value in resolved.items():
        match keyword:
            case _ if keyword in _COPIED:
                converted[keyword] = deepcopy(value)  # else YAML would show places of one type as aliases
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
    """What Kubernetes wants beyond JSON Schema: a type everywhere, known formats, sentences for `kubectl explain`."""
    if "type" not in converted:
        raise SchemaError(f"{place}: a structural schema needs a type at every place")
    if converted["type"] == "integer":
        converted["format"] = "int64"
        # Kubernetes keeps bounds as float64, which cannot hold these; the format says the same.
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
    """`schema` with defaults at its top only: defaults are for what users write; in results they are clutter."""
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
    """`schema` with its reference and its "or null" replaced by what they stand for; what stands beside them wins."""
    resolved = dict(schema)
    while True:
        if "$ref" in resolved:
            name = resolved.pop("$ref").removeprefix("#/$defs/")
            resolved = _merge(definitions[name], resolved)
        elif "anyOf" in resolved:
            alternatives = [one for one in resolved.pop("anyOf") if one != {"type": "null"}]
            if len(alternatives) != 1:
                raise SchemaError(f"{place}: of several alternatives a structural schema can carry only 'T or null'")
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
        """As the CustomResourceDefinition wants it."""
        column = {"name": self.name, "type": self.type, "jsonPath": self.json_path, "description": self.description}
        return {**column, "priority": self.priority} if self.priority else column


def _condition(kind: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_DIAGNOSIS_COLUMNS = (
    PrinterColumn("Target", ".status.target", "The nodes that are diagnosed"),
    PrinterColumn(
        "Succeeded", _condition("Succeeded", "status"), "True when the run ended with a result, Unknown while it runs"
    ),
    PrinterColumn("Reason", _condition("Succeeded", "reason"), "How the run stands or ended"),
    PrinterColumn("Progress", ".status.progress", "How far the run is"),
    PrinterColumn("Leak", _condition("LeakDetected", "status"), "Whether a leak was found"),
    PrinterColumn("AllocPage", ".status.results[0].allocPage", "Memory taken straight from the page allocator"),
    PrinterColumn("Suspect", ".status.suspect", "The prime suspect"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", type="date"),
    PrinterColumn("Verdict", _condition("LeakDetected", "reason"), "The verdict", priority=1),
    PrinterColumn("Summary", ".status.summary", "The answer in one sentence", priority=1),
)
_REPORT_COLUMNS = (
    PrinterColumn("Diagnosis", ".diagnosis", "The MemoryDiagnosis that asked"),
    PrinterColumn("Node", ".nodeName", "The node that was measured"),
    PrinterColumn("Verdict", ".evidence.verdict.kind", "The answer in one word"),
    PrinterColumn("Suspect", ".suspect", "The prime suspect"),
    PrinterColumn("Age", ".metadata.creationTimestamp", "Time since creation", type="date"),
)


def custom_resource_definitions() -> dict[str, dict[str, Any]]:
    """Every CustomResourceDefinition of the group, by file name under crds/."""
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
        "apiVersion": {"type": "string", "description": "The version of this representation of the object."},
        "kind": {"type": "string", "description": "What the object is."},
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
