"""Labels of nodes, matched as Kubernetes does it (apimachinery: pkg/labels/selector.go)."""

import re
from collections.abc import Mapping

from memdiag_api.diagnosis import LABEL_KEY_PATTERN
from memdiag_operator.config import AllowedNodes, LabelRequirement

_KEY = re.compile(LABEL_KEY_PATTERN)


def allows(allowed: AllowedNodes, labels: Mapping[str, str]) -> bool:
    """Whether a node with `labels` may be diagnosed."""
    return all(labels.get(key) == value for key, value in allowed.match_labels.items()) and all(
        _meets(requirement, labels) for requirement in allowed.match_expressions
    )


def _meets(requirement: LabelRequirement, labels: Mapping[str, str]) -> bool:
    key, values = requirement.key, requirement.values
    match requirement.operator:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return labels.get(key) not in values  # a missing label is not in any list
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels


def described(allowed: AllowedNodes) -> str:
    """The required labels in the syntax of `kubectl get nodes -l`: `pool=web,tier in (a,b),!secret`."""
    return ",".join([equality_selector(allowed.match_labels), *map(_in_words, allowed.match_expressions)]).strip(",")


def equality_selector(match_labels: Mapping[str, str]) -> str:
    """`pool=web,zone=b`, in the syntax of the API server."""
    return ",".join(f"{key}={value}" for key, value in sorted(match_labels.items()))


def faulty_key(match_labels: Mapping[str, str]) -> str | None:
    """The first key of `match_labels` that is not a valid label key; None if all are valid."""
    # fullmatch: in Python `$` also matches before a final newline.
    return next((key for key in match_labels if not _KEY.fullmatch(key)), None)


def _in_words(requirement: LabelRequirement) -> str:
    values = f"({','.join(requirement.values)})"
    return {
        "In": f"{requirement.key} in {values}",
        "NotIn": f"{requirement.key} notin {values}",
        "Exists": requirement.key,
        "DoesNotExist": f"!{requirement.key}",
    }[requirement.operator]
