"""What people try first and cannot work is told in words that help; what they print says what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from connector_sdk import EventBus, EventRegistry, MemoryLog, RedisLog
from connector_sdk.errors import ConfigurationError
from tests.servers.fixtures import Server, one_kind


@pytest.mark.parametrize("log", [None, "redis://user:secret@localhost", MemoryLog])
def test_a_bus_of_no_log_says_what_a_log_is(log: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"MemoryLog\(\)") as caught:
        EventBus(log)
    assert "secret" not in str(caught.value)


@pytest.mark.anyio
async def test_a_start_that_is_none_says_where_one_can_begin() -> None:
    async with EventBus(MemoryLog()) as bus:
        with pytest.raises(ConfigurationError, match='"now", "beginning"'):
            await bus.subscribe("orders:placed", print, start="yesterday")


@one_kind
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_password_that_a_server_does_not_want_is_told_at_once(redis_server: Server) -> None:
    url = redis_server.url.replace("redis://", "redis://:secret@")
    with pytest.raises(ConfigurationError, match="without any password") as caught:
        await EventBus(RedisLog(url)).connect()
    assert "secret" not in str(caught.value)


@pytest.mark.anyio
async def test_what_is_printed_says_what_it_is() -> None:
    registry = EventRegistry(strict=True)

    @registry.register(name="placed")
    @dataclass
    class Placed:
        number: int

    assert repr(registry) == "<EventRegistry of actions, placed, summary, strict>"
    log = MemoryLog()
    async with EventBus(log, registry=registry) as bus:
        stream = bus.events("orders:*")
        assert repr(stream) == "<EventStream 'orders:*' not begun>"
        async with stream:
            assert repr(stream) == "<EventStream 'orders:*' open>"
            await bus.publish("orders:placed", Placed(1))
            assert repr(log) == "<MemoryLog of 1 topics>"
        assert repr(stream) == "<EventStream 'orders:*' ended>"
