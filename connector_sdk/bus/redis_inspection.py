"""What is wrong with a Redis server for a bus, read off what it says of itself; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from connector_sdk.errors import ConfigurationError

__all__ = ["check_version", "findings_of"]

_OLDEST: Final = (6, 2)


def check_version(facts: Mapping[str, str]) -> None:
    """Raise ConfigurationError for a server that is too old; *facts* are the lines of `INFO`."""
    version = facts.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers and numbers < _OLDEST:
        raise ConfigurationError(
            "redis_url", None, f"a server of Redis 6.2 or later, and this is {version}", secret=True
        )


def findings_of(facts: Mapping[str, str]) -> Iterator[str]:
    """Return what is wrong, one sentence each; *facts* are the lines of `INFO`."""
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        yield (
            f"the server is configured to evict keys (maxmemory-policy {policy}) and will delete events and groups "
            "when its memory is full; give the bus a server with maxmemory-policy noeviction"
        )
