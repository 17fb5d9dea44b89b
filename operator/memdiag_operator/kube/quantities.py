"""Resource quantities (Kubernetes: apimachinery, pkg/api/resource/quantity.go)."""

import re
from fractions import Fraction

_QUANTITY = re.compile(r"(?P<number>[0-9]+(\.[0-9]*)?|\.[0-9]+)(?P<suffix>[KMGTPE]i|[numkMGTPE]?|[eE][+-]?[0-9]{1,3})")
_POWERS_OF_1024 = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_POWERS_OF_1000 = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def parse_byte_quantity(text: str) -> int:
    """Whole bytes of a quantity such as `24579124Ki` or `16e9`.

    Raises ValueError quoting `text`.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity such as 16Gi")
    number, suffix = Fraction(match["number"]), match["suffix"]
    if suffix in _POWERS_OF_1024:
        return int(number * 1024 ** _POWERS_OF_1024[suffix])
    if suffix in _POWERS_OF_1000:
        return int(number * Fraction(1000) ** _POWERS_OF_1000[suffix])
    return int(number * Fraction(10) ** int(suffix[1:]))
