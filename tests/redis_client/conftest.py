"""The client is for asyncio alone; every client that a test makes is closed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

import pytest

from connector_sdk.redis_client import RedisAddress, RedisClient

MakeClient: TypeAlias = Callable[..., RedisClient]


@pytest.fixture(params=["asyncio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    backend: str = request.param
    return backend


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Make clients for a URL; they are closed after the test."""
    async with contextlib.AsyncExitStack() as clients:

        def make(url: str, connect_timeout: float = 5.0) -> RedisClient:
            client = RedisClient(RedisAddress.parse(url), connect_timeout=connect_timeout)
            clients.push_async_callback(client.aclose)
            return client

        yield make
