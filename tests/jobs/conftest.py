"""Fixtures of the job tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.buffers.redis_place import RedisPlace
from tests.servers.fixtures import Server


@pytest.fixture
async def redis_place(redis_server: Server, redis_prefix: str) -> AsyncIterator[RedisPlace]:
    """A key prefix on each kind of server."""
    async with RedisPlace.at(redis_server.url, redis_prefix) as place:
        yield place
