"""What of the benchmarks of the bus needs psycopg: our log in PostgreSQL, and the floors beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import psycopg

from connector_sdk.bus.postgres import PostgresLog
from tests.benchmarks.bus_candidates import OurBus
from tests.benchmarks.bus_work import PREFIX, TOPIC, Seen, Subject, payload_of

__all__ = ["SUBJECTS"]

_TABLE: Final = PREFIX.replace("-", "_")
_CHANNEL: Final = _TABLE
_encode: Final = msgspec.json.Encoder().encode


class Psycopg:
    """The floor of publishing: INSERT of the same rows, a batch a transaction."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.AsyncConnection | None = None

    async def open(self) -> None:
        self._connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await self._connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
        await self._connection.execute(f"CREATE TABLE {_TABLE} (id bigserial PRIMARY KEY, topic text, body bytea)")

    def event(self, number: int) -> object:
        return payload_of(number)

    async def publish(self, events: Sequence[object]) -> None:
        assert self._connection is not None
        await self._connection.execute(
            f"INSERT INTO {_TABLE} (topic, body) SELECT %s, unnest(%s::bytea[])",
            (TOPIC, [_encode(event) for event in events]),
        )

    async def consume(self, seen: Seen) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.execute(f"DROP TABLE IF EXISTS {_TABLE}")
            await self._connection.close()


class Notify:
    """The floor of latency: NOTIFY with the number in it, and LISTEN on another connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._sender = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._listener = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await self._listener.execute(f"LISTEN {_CHANNEL}")

    def event(self, number: int) -> object:
        return number

    async def publish(self, events: Sequence[object]) -> None:
        for event in events:
            await self._sender.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, str(event)))

    async def consume(self, seen: Seen) -> None:
        async def listen() -> None:
            async for notification in self._listener.notifies():
                seen(int(notification.payload))

        self._task = asyncio.create_task(listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._sender.close()
        await self._listener.close()


class Stored:
    """What the least of storage costs there: a row and its NOTIFY in one statement, and a SELECT by who was told."""

    def __init__(self, url: str) -> None:
        self._rows = Psycopg(url)
        self._url = url
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._rows.open()
        self._sender = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._listener = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        self._reader = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        await self._listener.execute(f"LISTEN {_CHANNEL}")

    def event(self, number: int) -> object:
        return payload_of(number)

    async def publish(self, events: Sequence[object]) -> None:
        for event in events:
            await self._sender.execute(
                f"WITH stored AS (INSERT INTO {_TABLE} (topic, body) VALUES (%s, %b) RETURNING topic)"
                " SELECT pg_notify(%s, topic) FROM stored",
                (TOPIC, _encode(event), _CHANNEL),
            )

    async def consume(self, seen: Seen) -> None:
        async def listen() -> None:
            last = 0
            async for _ in self._listener.notifies():
                statement = f"SELECT id, body FROM {_TABLE} WHERE topic = %s AND id > %s ORDER BY id"
                cursor = await self._reader.execute(statement, (TOPIC, last), binary=True)
                for number, body in await cursor.fetchall():
                    last = number
                    seen(msgspec.json.decode(body)["number"])

        self._task = asyncio.create_task(listen())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for connection in (self._sender, self._listener, self._reader):
            await connection.close()
        await self._rows.close()


SUBJECTS: Final[dict[str, Callable[[str], Subject]]] = {
    "bus_postgres": lambda url: OurBus(PostgresLog(url, key_prefix=_TABLE, max_events=100_000), None),
    "psycopg": Psycopg,
    "notify": Notify,
    "stored": Stored,
}
