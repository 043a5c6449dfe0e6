"""A user of a Redis server who may do certain things only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

import redis

PASSWORD: Final = "only-for-tests"


@dataclasses.dataclass(frozen=True)
class AclUser:
    """A user that exists on the server at *url* (its own address, credentials included)."""

    name: str
    password: str
    url: str


def create_user(port: int, name: str, *, commands: Iterable[str], keys: Iterable[str]) -> AclUser:
    """
    Make *name* a user of the server on *port*, with the right to *commands* (as "zadd", "script|load", or a category
    as "@read") on keys that match one of the patterns *keys*; nothing else, and no channel.
    """
    rules = ["reset", "on", f">{PASSWORD}", "-@all"]
    rules += [f"+{command}" for command in commands]
    rules += [f"~{pattern}" for pattern in keys]
    with redis.Redis(port=port) as admin:
        admin.execute_command("ACL", "SETUSER", name, *rules)
    return AclUser(name, PASSWORD, f"redis://{name}:{PASSWORD}@127.0.0.1:{port}/0")


def delete_user(port: int, name: str) -> None:
    """Remove *name*, and its connections; nothing happens when there is none."""
    with redis.Redis(port=port) as admin:
        admin.execute_command("ACL", "DELUSER", name)
