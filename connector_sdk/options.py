"""Checks of option values: each refuses with the option's name, the value given and what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable

from connector_sdk.errors import ConfigurationError

__all__ = ["check_choice", "check_integer", "check_seconds"]


def check_integer(option: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return *value* if it is a whole number in range (bool is not), else raise ConfigurationError."""
    if type(value) is int and value >= minimum and maximum is None:
        return value  # as nearly always, and some callers are called often
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < minimum
        or (maximum is not None and value > maximum)
    ):
        raise ConfigurationError(option, value, _range("a whole number", minimum, maximum))
    return int(value)


def check_seconds(
    option: str, value: object, *, above: float | None = None, minimum: float = 0.0, maximum: float = math.inf
) -> float:
    """Return *value* as float if it is a finite number of seconds >= *minimum*, > *above* and <= *maximum*."""
    if type(value) is float and minimum <= value < math.inf and value <= maximum and (above is None or value > above):
        return value
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not -sys.float_info.max <= value <= sys.float_info.max  # a whole number may be too large for a float
        or not minimum <= value <= maximum
        or (above is not None and value <= above)
    ):
        limit = f"above {above:g}" if above is not None and above >= minimum else f"{minimum:g} or more"
        limit += "" if maximum == math.inf else f" and at most {maximum:g}"
        raise ConfigurationError(option, value, f"a finite number of seconds, {limit}")
    return float(value)


def check_choice(option: str, value: object, choices: Iterable[str]) -> str:
    """Return *value* if it is one of *choices*, else raise ConfigurationError that lists them."""
    known = list(choices)
    if isinstance(value, str) and value in known:
        return value
    raise ConfigurationError(option, value, "one of " + ", ".join(repr(choice) for choice in known))


def _range(kind: str, minimum: int, maximum: int | None) -> str:
    return f"{kind}, {minimum} or more" if maximum is None else f"{kind} from {minimum} to {maximum}"
