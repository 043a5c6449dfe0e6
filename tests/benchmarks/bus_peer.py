"""
Other buses, used as their own documentation says: run by the Python of .venv-bench.

`python -m tests.benchmarks.bus_peer SUBJECT URL JOB`, see `bus_work`. What is imported here is not installed beside the
library, so it is imported by name and untyped.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from tests.benchmarks.bus_work import GROUP, PREFIX, TOPIC, Seen, Subject, main, payload_of

__all__ = ["SUBJECTS"]


class _EventSource:
    """What both buses of eventsource-py need: a registered event."""

    _bus: Any

    def __init__(self) -> None:
        event = importlib.import_module("eventsource.domain.event").DomainEvent
        annotations = {"number": int, "customer": str, "total": float, "note": str, "paid": bool, "aggregate_type": str}
        self._type = type("OrderPlaced", (event,), {"__annotations__": annotations, "aggregate_type": "Order"})
        self._aggregate = uuid.uuid4()

    def event(self, number: int) -> object:
        made: object = self._type(aggregate_id=self._aggregate, **payload_of(number))
        return made

    async def publish(self, events: Sequence[object]) -> None:
        await self._bus.publish(list(events))


class EventSourceRedis(_EventSource):
    """Its bus on Redis Streams, with one group."""

    def __init__(self, url: str) -> None:
        super().__init__()
        home = importlib.import_module("eventsource.adapters.redis")
        registry = importlib.import_module("eventsource.domain.event_registry").EventRegistry()
        registry.register(self._type)
        config = home.RedisEventBusConfig(
            redis_url=url, stream_prefix=PREFIX, consumer_group=GROUP, enable_tracing=False, block_ms=1000
        )
        self._bus = home.RedisEventBus(config=config, event_registry=registry)
        self._consuming: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._bus.connect()

    async def consume(self, seen: Seen) -> None:
        async def handle(event: Any) -> None:
            seen(event.number)

        self._bus.subscribe(self._type, handle)
        self._consuming = asyncio.create_task(self._bus.start_consuming())

    async def close(self) -> None:
        await self._bus.stop_consuming()
        if self._consuming is not None:
            self._consuming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._consuming
        await self._bus.disconnect()


class EventSourceMemory(_EventSource):
    """Its bus in memory."""

    def __init__(self, url: str) -> None:
        del url
        super().__init__()
        self._bus = importlib.import_module("eventsource.adapters.memory").InMemoryEventBus(enable_tracing=False)

    async def open(self) -> None:
        pass

    async def consume(self, seen: Seen) -> None:
        async def handle(event: Any) -> None:
            seen(event.number)

        self._bus.subscribe(self._type, handle)

    async def close(self) -> None:
        await self._bus.shutdown(timeout=5.0)


class _Dataknobs:
    """What both buses of dataknobs have in common."""

    def __init__(self, bus: str, **options: object) -> None:
        home = importlib.import_module("dataknobs_common.events")
        self._event, self._kind = home.Event, home.EventType.CREATED
        module, _, name = bus.rpartition(".")
        self._bus = getattr(importlib.import_module(module), name)(**options)

    async def open(self) -> None:
        await self._bus.connect()

    def event(self, number: int) -> object:
        made: object = self._event(type=self._kind, topic=TOPIC, payload=payload_of(number))
        return made

    async def publish(self, events: Sequence[object]) -> None:
        for event in events:
            await self._bus.publish(TOPIC, event)

    async def consume(self, seen: Seen) -> None:
        async def handle(event: Any) -> None:
            seen(event.payload["number"])

        await self._bus.subscribe(TOPIC, handle)

    async def close(self) -> None:
        await self._bus.close()


class DataknobsRedis(_Dataknobs):
    """Its bus on Redis pub/sub, which keeps nothing."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        super().__init__(
            "dataknobs_common.events.redis.RedisEventBus",
            host=parts.hostname, port=parts.port, password=parts.password, channel_prefix=PREFIX,
        )  # fmt: skip


class DataknobsMemory(_Dataknobs):
    """Its bus in memory, which runs handlers inside of publish."""

    def __init__(self, url: str) -> None:
        del url
        super().__init__("dataknobs_common.events.memory.InMemoryEventBus")


class Coredis:
    """Its client's streams; GroupConsumer with a prefetch of 100, each entry acknowledged."""

    def __init__(self, url: str) -> None:
        self._client = importlib.import_module("coredis").Redis.from_url(url)
        self._consumer = importlib.import_module("coredis.patterns.streams").GroupConsumer
        self._stack = contextlib.AsyncExitStack()
        self._key = f"{PREFIX}:{TOPIC}"
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._stack.enter_async_context(self._client)

    def event(self, number: int) -> object:
        return payload_of(number)

    async def publish(self, events: Sequence[object]) -> None:
        if len(events) == 1:
            await self._client.xadd(self._key, {"b": json.dumps(events[0])})
            return
        async with self._client.pipeline(transaction=False) as pipeline:
            for event in events:
                pipeline.xadd(self._key, {"b": json.dumps(event)})

    async def consume(self, seen: Seen) -> None:
        await self._client.xgroup_create(self._key, GROUP, "0", mkstream=True)
        consumer = self._consumer(self._client, [self._key], GROUP, "one", buffer_size=100, timeout=1000)
        self._task = asyncio.create_task(self._read(consumer, seen))

    async def _read(self, consumer: Any, seen: Seen) -> None:
        async with consumer:
            while True:
                async for stream, entry in consumer:
                    number = json.loads(entry.field_values[b"b"])["number"]
                    await self._client.xack(stream, GROUP, [entry.identifier])
                    seen(number)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._stack.aclose()


SUBJECTS: Final[dict[str, Callable[[str], Subject]]] = {
    "eventsource": EventSourceRedis,
    "eventsource_memory": EventSourceMemory,
    "dataknobs": DataknobsRedis,
    "dataknobs_memory": DataknobsMemory,
    "coredis": Coredis,
}

if __name__ == "__main__":
    main(SUBJECTS)
