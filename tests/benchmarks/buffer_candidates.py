"""
Buffers that are measured against each other: on disk, in Redis, in memory, over a bridge; and the floor of the one on disk.

`python -m tests.benchmarks.buffer_candidates SUBJECT PLACE JOB`, see `redis_work`. PLACE is the URL of a Redis (or "-"), a
space, and a folder for files.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, cast

from connector_sdk.buffers.bridge import OutageBridge
from connector_sdk.buffers.durable import DurableBuffer
from connector_sdk.buffers.memory import EventBuffer
from connector_sdk.buffers.redis import RedisEventBuffer
from connector_sdk.buffers.sqlite import SQLiteEventBuffer
from connector_sdk.ledger import Ledger
from connector_sdk.payloads import ActionsPayload, Payload, decode_payload, encode_payload
from tests.benchmarks.redis_work import PREFIX, Subject, main

__all__ = ["LEASED", "PAGE", "SUBJECTS"]

#: Events in one lease.
LEASED: Final = 500
#: Events that a durable buffer takes from its store in one step.
PAGE: Final = 1_000


class _Subject:
    """What all have in common. Every event has an id, as those of a connector have."""

    def __init__(self) -> None:
        self._made = 0

    def payload(self, text: str) -> Payload:
        self._made += 1
        return decode_payload(text.encode(), event_id=f"{self._made:010d}")

    def time_of(self, payload: object) -> float:
        assert isinstance(payload, ActionsPayload)
        return payload.forwarded_at

    def drain_pages(self, page: int) -> AsyncIterator[Sequence[object]]:
        raise NotImplementedError


class Memory(_Subject):
    """An EventBuffer."""

    def __init__(self, *, way: str = "drain") -> None:
        super().__init__()
        self._buffer = EventBuffer(0)
        self._way = way

    async def add(self, payload: object) -> None:
        self._buffer.add(cast(Payload, payload))

    async def drain(self) -> Sequence[Payload]:
        if self._way == "drain":
            return self._buffer.drain()
        taken: list[Payload] = []
        if self._way == "pages":
            while page := self._buffer.drain(LEASED):
                taken += page
            return taken
        while True:
            with self._buffer.lease(LEASED) as lease:
                if not lease:
                    return taken
                taken += lease.events

    async def finish(self) -> str:
        return _wrong(self._buffer.stats().ledger)


class Durable(_Subject):
    """A DurableBuffer; all that was added is taken out in one of three ways."""

    def __init__(self, buffer: DurableBuffer, *, way: str = "drain") -> None:
        super().__init__()
        self._buffer = buffer
        self._way = way

    async def add(self, payload: object) -> None:
        await self._buffer.add(cast(Payload, payload))

    async def drain(self) -> Sequence[Payload]:
        if self._way == "drain":
            return await self._buffer.drain()
        taken: list[Payload] = []
        if self._way == "pages":
            while page := await self._buffer.drain(LEASED):
                taken += page
            return taken
        while True:
            async with self._buffer.lease(LEASED) as lease:
                if not lease:
                    return taken
                taken += lease.events

    async def finish(self) -> str:
        await self._buffer.aclose()
        return _wrong((await self._buffer.stats()).ledger)


class Bridge(_Subject):
    """An OutageBridge whose remote is healthy."""

    def __init__(self, remote: DurableBuffer, local: EventBuffer | DurableBuffer) -> None:
        super().__init__()
        self._bridge = OutageBridge(remote, local, overflow="block")

    async def add(self, payload: object) -> None:
        await self._bridge.add(cast(Payload, payload))

    async def drain(self) -> Sequence[Payload]:
        return await self._bridge.drain()

    async def finish(self) -> str:
        await self._bridge.aclose()
        stats = await self._bridge.stats()
        return _wrong(stats.ledger) or (f"{stats.outages} outages" if stats.outages else "")


class Floor(_Subject):
    """
    sqlite3 with WAL and `synchronous=FULL`: `executemany` in a transaction, and nothing is bounded, shared or recognised.

    Drained in the order of arrival, page by page: SELECT, decode, DELETE, commit.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._db = sqlite3.connect(folder / "floor.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = wal")
        self._db.execute("PRAGMA synchronous = full")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS events "
            "(arrival INTEGER PRIMARY KEY, time REAL, session TEXT, event_id TEXT, body BLOB)"
        )

    async def add(self, payload: object) -> None:
        self.add_batch([payload])

    def add_batch(self, payloads: Sequence[object]) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT INTO events (time, session, event_id, body) VALUES (?, ?, ?, ?)",
            [
                (payload.forwarded_at, payload.session_id, payload.event_id, encode_payload(payload))
                for payload in cast(Sequence[Payload], payloads)
            ],
        )
        db.execute("COMMIT")

    async def drain(self) -> Sequence[Payload]:
        db = self._db
        taken: list[Payload] = []
        while True:
            db.execute("BEGIN IMMEDIATE")
            rows = db.execute("SELECT arrival, event_id, body FROM events ORDER BY arrival LIMIT ?", (PAGE,)).fetchall()
            taken += [decode_payload(body, event_id=event_id) for _, event_id, body in rows]
            if rows:
                db.execute("DELETE FROM events WHERE arrival <= ?", (rows[-1][0],))
            db.execute("COMMIT")
            if not rows:
                return taken

    async def finish(self) -> str:
        self._db.close()
        return ""


def _wrong(ledger: Ledger) -> str:
    balanced = ledger.balanced and not ledger.buffered and not ledger.in_flight and not ledger.dropped
    return "" if balanced else f"the ledger says {ledger}"


def _redis(place: str) -> RedisEventBuffer:
    return RedisEventBuffer(place.partition(" ")[0], PREFIX, overflow="block")


def _sqlite(place: str) -> SQLiteEventBuffer:
    return SQLiteEventBuffer(_folder(place) / "ours.db", overflow="block")


def _folder(place: str) -> Path:
    return Path(place.partition(" ")[2])


def _memory(way: str, _place: str) -> Subject:
    return Memory(way=way)


def _on_disk(way: str, place: str) -> Subject:
    return Durable(_sqlite(place), way=way)


def _in_redis(way: str, place: str) -> Subject:
    return Durable(_redis(place), way=way)


#: By name; `memory lease` takes out what waits with leases, `memory pages` with drains of as many events.
SUBJECTS: Final[dict[str, Callable[[str], Subject]]] = {
    **{
        f"{kind} {way}": partial(make, way)
        for kind, make in (("memory", _memory), ("sqlite", _on_disk), ("redis", _in_redis))
        for way in ("drain", "pages", "lease")
    },
    "floor": lambda place: Floor(_folder(place)),
    "bridge to memory": lambda place: Bridge(_redis(place), EventBuffer(100_000)),
    "bridge to sqlite": lambda place: Bridge(_redis(place), _sqlite(place)),
}


if __name__ == "__main__":
    main(SUBJECTS)
