"""Where the tests of the bus have theirs."""

from __future__ import annotations

import secrets

import pytest

from tests.bus.places import Place
from tests.servers.fixtures import Server


@pytest.fixture(params=["memory", "redis", "postgres"])
def place(request: pytest.FixtureRequest, redis_server: Server, redis_prefix: str, postgres: str) -> Place:
    """A bus on each kind of log in turn; put `one_kind` over the test."""
    kind: str = request.param
    url = {"memory": "", "redis": redis_server.url, "postgres": postgres}[kind]
    return Place(kind, url, redis_prefix if kind == "redis" else f"place-{secrets.token_hex(4)}")
