"""What the tests of a RedisLog have in common."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypedDict, Unpack

import anyio

from connector_sdk.bus.log import START, Delivery, LogMember, Loss
from connector_sdk.bus.redis import RedisLog
from connector_sdk.errors import BusUnavailableError
from connector_sdk.testing.log_case import Reader

__all__ = [
    "PATIENCE",
    "TOPIC",
    "AgingRedisLog",
    "append_until_stored",
    "claimed",
    "opened",
    "read_until",
    "reader_from_now",
]

PATIENCE: Final = 30.0
TOPIC: Final = "orders:created"


class Options(TypedDict, total=False):
    max_events: int
    ttl_seconds: float
    max_backlog: int
    max_backlog_seconds: float
    retention: dict[str, tuple[int, float]]
    max_dead_letters: int
    dead_letter_seconds: float
    response_timeout: float
    connect_timeout: float


class AgingRedisLog(RedisLog):
    """Keeps events for as short as a test wants."""

    _shortest_ttl = 0.01


@asynccontextmanager
async def opened(url: str, prefix: str = "events", **options: Unpack[Options]) -> AsyncIterator[AgingRedisLog]:
    """Open a log for the length of a block."""
    log = AgingRedisLog(url, prefix, **options)
    try:
        with anyio.fail_after(3 * PATIENCE):
            await log.connect()
            yield log
    finally:
        await log.aclose()


async def append_until_stored(log: RedisLog, bodies: Iterable[bytes], topic: str = TOPIC) -> None:
    """Append each body, again and again while the server is away: some may be stored twice."""
    for body in bodies:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                await log.append([(topic, body)])
                break
            except BusUnavailableError:
                assert time.monotonic() < end
                await anyio.sleep(0.05)


async def claimed(member: LogMember, bodies: Iterable[bytes]) -> tuple[list[Delivery], list[Loss]]:
    """Claim until all of *bodies* were there, whatever the server does; return all that was."""
    wanted = set(bodies)
    found: list[Delivery] = []
    losses: list[Loss] = []
    with anyio.fail_after(PATIENCE):
        while wanted - {delivery.body for delivery in found}:
            with suppress(BusUnavailableError):
                claim = await member.claim(100, wait=1.0)
                found += claim.deliveries
                losses += claim.losses
                continue
            await anyio.sleep(0.05)
    return found, losses


async def read_until(reader: Reader, bodies: Iterable[bytes]) -> None:
    """Read until all of *bodies* were there, whatever the server does."""
    wanted = set(bodies)
    with anyio.fail_after(PATIENCE):
        while wanted - {record.body for record in reader.records}:
            with suppress(BusUnavailableError):
                await reader.read(wait=1.0)
                continue
            await anyio.sleep(0.05)


async def reader_from_now(log: RedisLog, topic: str = TOPIC) -> Reader:
    """Return a reader of what comes to *topic*, and of new topics."""
    reader = Reader(log, {topic: await log.end(topic)}, catalogue=START)
    await reader.read()
    return reader
