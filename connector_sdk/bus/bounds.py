"""The options about how much is kept: the same ranges for every log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from connector_sdk.bus.topics import check_topic
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_integer, check_seconds

__all__ = ["check_kept", "check_lifetime", "check_retention"]

_WEEK: Final = 604_800.0
_TEN_YEARS: Final = 10 * 366 * 86_400.0


def check_kept(max_events: object, ttl_seconds: object, *, shortest: float = 60.0) -> tuple[int, float]:
    """Return how many events of a topic are kept, and for how many seconds, if both are in their ranges."""
    events = check_integer("max_events", max_events, minimum=10, maximum=100_000)
    return events, check_seconds("ttl_seconds", ttl_seconds, minimum=shortest, maximum=_WEEK)


def check_retention(retention: object, *, shortest: float = 60.0) -> dict[str, tuple[int, float]]:
    """Return the same of topics that have others, by name. A pattern is none: it would never be looked up."""
    if retention is None:
        return {}
    if not isinstance(retention, Mapping):
        raise ConfigurationError("retention", retention, "a mapping of topics to (max_events, ttl_seconds)")
    found: dict[str, tuple[int, float]] = {}
    for topic, bounds in retention.items():
        if not isinstance(bounds, tuple | list) or len(bounds) != 2:
            raise ConfigurationError("retention", {topic: bounds}, "(max_events, ttl_seconds) for each topic")
        found[check_topic(topic, "retention")] = check_kept(*bounds, shortest=shortest)
    return found


def check_lifetime(option: str, value: object, *, minimum: float = 0.0) -> float:
    """Return for how many seconds something is kept that outlives what it came from."""
    return check_seconds(option, value, above=0, minimum=minimum, maximum=_TEN_YEARS)
