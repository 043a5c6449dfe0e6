"""Buses and buffers by configuration: each option arrives, each mistake is named, and no secret is told."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path

import pytest

from connector_sdk.buffers.protocol import BufferBackend
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.memory import MemoryLog
from connector_sdk.errors import ConfigurationError
from connector_sdk.payloads import SummaryPayload
from connector_sdk.plugins import EVENT_LOGS, create_event_bus, open_buffer


@pytest.mark.anyio
async def test_a_bus_in_memory_by_configuration() -> None:
    got: list[object] = []

    async def take(event: Event) -> None:
        got.append(event.payload)

    async with create_event_bus({"backend": "memory", "max_events": 50, "queue_size": 7}) as bus:
        await bus.subscribe("a", take)
        await bus.publish("a", Event("created", "a", 1))
        await bus.settle(30)
    assert got == [1]


def test_without_a_backend_it_says_that_events_stay_here(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(create_event_bus(), EventBus)
    assert "never leave this process" in caplog.text


@pytest.mark.parametrize(
    "config",
    [
        {"backend": "redis"},
        {"backend": "redis", "redis": {"max_events_per_run": 100, "stream_ttl_seconds": 60, "connection_pool_size": 3}},
        {"backend": "redis", "host": "cache", "port": 6380, "db": 3, "ssl": True, "password": "s3:c/ret", "username": "app"},
        {"backend": "redis", "url": "redis://user:s3cret@cache:6380/3", "key_prefix": "orders", "hold": 5},
        {"backend": "postgres", "connection_string": "postgresql://user:s3cret@db/app", "channel_prefix": "orders"},
    ],
)  # fmt: skip
def test_what_configurations_say(config: Mapping[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://from-variable:6379/1")
    bus = create_event_bus(config)
    said = repr(bus)
    assert "s3" not in said
    if config == {"backend": "redis"}:
        assert "from-variable" in said
    if config.get("port"):
        assert "cache:6380/3" in said


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"backend": "reddis"}, "'redis'"),
        ({"backend": 7}, "'memory'"),
        ({"backend": "memory", "max_event": 10}, "max_events"),
        ({"backend": "memory", "max_events": 9}, "10 to 100000"),
        ({"backend": "memory", "max_events": 100_001}, "10 to 100000"),
        ({"backend": "memory", "ttl_seconds": 59}, "60"),
        ({"backend": "memory", "ttl_seconds": 604_801}, "604800"),
        ({"backend": "memory", "queue_size": 0}, "queue_size"),
        ({"backend": "memory", "fallback": "disk"}, "fallback"),
        ({"backend": "redis", "hots": "cache"}, "host"),
        ({"backend": "redis", "redis": 5}, "a dict"),
        ({"backend": "redis", "host": "cache", "port": 70_000}, "65535"),
        ({"backend": "redis", "host": "cache", "db": -1}, "db"),
        ({"backend": "redis", "port": 6379}, "host"),
        ({"backend": "redis", "host": "cache", "url": "redis://s3cret@cache"}, "url"),
        ({"backend": "redis", "max_events": 100, "max_events_per_run": 100}, "max_events"),
        ({"backend": "redis", "connection_pool_size": 0}, "connection_pool_size"),
        ({"backend": "postgres"}, "connection_string"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(config: Mapping[str, object], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        create_event_bus(config)
    assert named in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_missing_package_is_named_unless_the_memory_will_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "psycopg" else real(name))
    config = {"backend": "postgres", "connection_string": "postgresql://user:s3cret@db/app", "hold": 5}
    with pytest.raises(ConfigurationError, match=r"connector_sdk\[postgres\]"):
        create_event_bus(config)
    with pytest.raises(ConfigurationError, match=r"connector_sdk\[postgres\]"):
        open_buffer("postgresql://db/app")
    with caplog.at_level(logging.WARNING):
        bus = create_event_bus({**config, "fallback": "memory"})
    assert "memory" in repr(bus)
    assert "FALLS BACK" in caplog.text
    assert "s3cret" not in caplog.text


def make_log(max_events: int = 100) -> MemoryLog:
    """Make a log, as an entry point of another package would."""
    return MemoryLog(max_events=max_events)


def test_entry_points_add_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("mine", f"{__name__}:make_log", EVENT_LOGS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point] if group == EVENT_LOGS else [])
    assert isinstance(create_event_bus({"backend": "mine", "max_events": 20}), EventBus)
    with pytest.raises(ConfigurationError, match="max_events"):
        create_event_bus({"backend": "mine", "max_events": 1})
    with pytest.raises(ConfigurationError, match="'mine'"):
        create_event_bus({"backend": "yours"})


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
async def test_buffers_by_url(scheme: str, tmp_path: Path) -> None:
    buffer = open_buffer("memory://" if scheme == "memory" else f"sqlite:///{tmp_path}/events.db")
    assert isinstance(buffer, BufferBackend)
    await buffer.add(SummaryPayload(product_id="shop", session_id="s", summary="text", forwarded_at=1.0))
    assert [payload.product_id for payload in await buffer.drain()] == ["shop"]
    if isinstance(buffer, SQLiteEventBuffer):
        await buffer.aclose()


def test_buffers_of_servers_and_mistakes() -> None:
    assert isinstance(open_buffer("redis://localhost:6379/0", key_prefix="shop"), RedisEventBuffer)
    for url, options, named in (
        ("mongodb://user:s3cret@host", {}, "redis://"),
        ("memory://", {"max_siz": 3}, "max_size"),
        ("redis://localhost", {"key_prefx": "x"}, "key_prefix"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            open_buffer(url, **options)
        assert named in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_configuration_that_is_no_dict_is_told_without_its_secrets() -> None:
    with pytest.raises(ConfigurationError, match=r"config=<hidden> .* a dict, such as") as caught:
        create_event_bus("redis://:s3cret@localhost:6379/0")  # type: ignore[arg-type]
    assert "s3cret" not in str(caught.value)
