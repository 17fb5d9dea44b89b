"""Incompatible changes of a CustomResourceDefinition, for objects stored and clients written for an earlier one."""

from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

# Bounds that may only increase, and bounds that may only decrease.
_UPPER = ("maxItems", "maxLength", "maxProperties", "maximum")
_LOWER = ("minItems", "minLength", "minProperties", "minimum")
# Server-side apply, defaults and storage depend on these.
_FIXED = (
    "default",
    "format",
    "nullable",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
)
_NAMES = ("group", "scope")


def broken_promises(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Every place at which `new` refuses, drops or renames what `old` allowed; empty if it can replace `old`."""
    return list(_definition(old["spec"], new["spec"]))


def _definition(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name in _NAMES:
        if old[name] != new[name]:
            yield f"{name} was {old[name]}, is {new[name]}"
    yield from _names(old["names"], new["names"])
    versions = {version["name"]: version for version in new["versions"]}
    for version in old["versions"]:
        later = versions.get(version["name"])
        if later is None or (version["served"] and not later["served"]):
            yield f"{version['name']} is not served any more"
        else:
            yield from _version(version, later)


def _names(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for name, value in old.items():
        if name != "shortNames" and new.get(name) != value:
            yield f"names.{name} was {value}, is {new.get(name)}"
    if lost := sorted(set(old.get("shortNames", [])) - set(new.get("shortNames", []))):
        yield f"names.shortNames lacks {lost}"


def _version(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    name = old["name"]
    if old.get("subresources") != new.get("subresources"):
        yield f"{name}: subresources differ"
    paths = {one["jsonPath"] for one in new.get("selectableFields", [])}
    for field in old.get("selectableFields", []):
        if field["jsonPath"] not in paths:
            yield f"{name}: {field['jsonPath']} is not selectable any more"
    yield from _schema(old["schema"]["openAPIV3Schema"], new["schema"]["openAPIV3Schema"], name)


def _schema(old: Schema, new: Schema, place: str) -> Iterator[str]:
    for keyword in _FIXED:
        if old.get(keyword) != new.get(keyword):
            yield f"{place}: {keyword} was {old.get(keyword)!r}, is {new.get(keyword)!r}"
    for keyword in _UPPER:
        if keyword in new and new[keyword] < old.get(keyword, float("inf")):
            yield f"{place}: {keyword} was {old.get(keyword)}, is {new[keyword]}"
    for keyword in _LOWER:
        if keyword in new and new[keyword] > old.get(keyword, float("-inf")):
            yield f"{place}: {keyword} was {old.get(keyword)}, is {new[keyword]}"
    yield from _rules(old, new, place)
    yield from _parts(old, new, place)


def _rules(old: Schema, new: Schema, place: str) -> Iterator[str]:
    if "enum" in new and (lost := sorted(set(old.get("enum", ["anything"])) - set(new["enum"]))):
        yield f"{place}: enum has lost {lost}"
    if new.get("pattern") not in (None, old.get("pattern")):
        yield f"{place}: pattern was {old.get('pattern')}, is {new['pattern']}"
    for field in sorted(set(new.get("required", [])) - set(old.get("required", []))):
        yield f"{place}: {field} is required now"
    rules = {rule["rule"] for rule in old.get("x-kubernetes-validations", [])}
    for rule in new.get("x-kubernetes-validations", []):
        if rule["rule"] not in rules:
            yield f"{place}: rule is new: {rule['rule']}"


def _parts(old: Schema, new: Schema, place: str) -> Iterator[str]:
    kept = new.get("properties", {})
    for name, part in old.get("properties", {}).items():
        if name in kept:
            yield from _schema(part, kept[name], f"{place}.{name}")
        else:
            yield f"{place}.{name} is gone"
    for keyword, suffix in (("items", "[]"), ("additionalProperties", "{}")):
        if keyword in old and keyword not in new:
            yield f"{place}{suffix} is gone"
        elif keyword in old:
            yield from _schema(old[keyword], new[keyword], f"{place}{suffix}")
