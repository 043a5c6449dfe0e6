"""Fixtures of the stream tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.servers.fixtures import Server
from tests.streams.stream_place import StreamPlace


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """The consumers of streams are for asyncio."""
    backend: str = request.param
    return backend


@pytest.fixture
async def place(redis_server: Server, redis_prefix: str) -> AsyncIterator[StreamPlace]:
    """A key prefix on each kind of server."""
    async with StreamPlace.at(redis_server.url, redis_prefix) as place:
        yield place
