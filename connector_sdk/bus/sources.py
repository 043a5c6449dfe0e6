"""Where a subscription begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Final, TypeAlias

import anyio

from connector_sdk.bus.log import START, EventLog
from connector_sdk.errors import BusUnavailableError, ConfigurationError

__all__ = ["Start", "check_start", "for_each", "resolve_start"]

#: Requests at once when a pattern begins in many topics.
_AT_ONCE: Final = 16

#: "now", "beginning", a position of the topic, or a time with a zone.
Start: TypeAlias = str | datetime


def check_start(start: object, *, is_wild: bool) -> Start:
    """Return *start* if a subscription can begin there, else raise ConfigurationError."""
    if start in ("now", "beginning"):
        return str(start)
    if isinstance(start, datetime):
        if start.tzinfo is None:
            raise ConfigurationError("start", start, "a time with a zone, like datetime.now(UTC)")
        return start
    if not isinstance(start, str) or not start:
        raise ConfigurationError(
            "start", start, '"now", "beginning", a position of the topic, or a datetime with a zone'
        )
    if is_wild:
        raise ConfigurationError("start", start, '"now", "beginning" or a datetime: positions belong to one topic')
    return start


async def resolve_start(log: EventLog, topic: str, start: Start) -> str:
    """Return the position in *topic* after which the entries begin."""
    if isinstance(start, datetime):
        return await log.position_at(topic, start)
    if start == "now":
        return await log.end(topic)
    return START if start == "beginning" else start


async def for_each(topics: Iterable[str], call: Callable[[str], Awaitable[None]]) -> None:
    """Do *call* for each topic, some at once. Raises the first BusUnavailableError of them, when all are done."""
    limiter = anyio.CapacityLimiter(_AT_ONCE)
    errors: list[BusUnavailableError] = []

    async def one(topic: str) -> None:
        async with limiter:
            try:
                await call(topic)
            except BusUnavailableError as error:
                errors.append(error)

    async with anyio.create_task_group() as group:
        for topic in topics:
            group.start_soon(one, topic)
    if errors:
        raise errors[0]
