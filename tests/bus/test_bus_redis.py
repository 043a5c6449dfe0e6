"""The event bus on RedisLog passes the public contract suite, on each kind of server."""

from __future__ import annotations

from typing import Unpack

import pytest

from connector_sdk.bus.redis import RedisLog
from connector_sdk.testing import EventBusContract, LogOptions
from tests.servers.fixtures import Server


@pytest.fixture
def anyio_backend() -> str:
    """The Redis client works in asyncio alone."""
    return "asyncio"


class TestBusOnRedis(EventBusContract):
    hold = 0.8

    @pytest.fixture(autouse=True)
    def _place(self, redis_server: Server, redis_prefix: str) -> None:
        self.url = redis_server.url
        self.prefix = redis_prefix

    async def make_log(self, **options: Unpack[LogOptions]) -> RedisLog:
        return RedisLog(self.url, self.prefix, **options)
