"""What is wrong with a Redis server for a buffer, read off what it says of itself; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["findings_of"]

_OLDEST: Final = (6, 2)


def findings_of(facts: Mapping[str, str]) -> Iterator[str]:
    """Return what is wrong, one sentence each; *facts* are the lines of `INFO`."""
    version = facts.get("redis_version", "")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST:
        yield f"the server is Redis {version}; 6.2 is the oldest that is tested: use that or a later one"
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        yield (
            f"the server is configured to evict keys (maxmemory-policy {policy}) and will delete events that wait "
            "when its memory is full; give the buffer a server with maxmemory-policy noeviction"
        )
