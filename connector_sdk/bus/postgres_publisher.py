"""Storing entries in a `PostgresLog`: one statement at a time, with whatever came meanwhile in the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import islice
from typing import Final, cast

from connector_sdk.bus.log import Body
from connector_sdk.bus.postgres_calls import Calls
from connector_sdk.errors import BusClosedError, BusUnavailableError

__all__ = ["Bounds", "Publisher", "Retention"]

_PUBLISH: Final = (
    "SELECT events_publish(%s::text[], %s::integer[], %b::bytea[], %s::boolean[],"
    " %s::bigint[], %s::double precision[], %s::bigint[], %s::double precision[])"
)
#: What calls of several tasks are put together to, at most.
_ENTRIES: Final = 2000
_BYTES: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a topic keeps; see `PostgresLog`. Times in seconds."""

    max_events: int
    ttl_seconds: float
    max_backlog: int
    max_backlog_seconds: float

    @property
    def parameters(self) -> tuple[int, float, int, float]:
        """As statements take them."""
        return self.max_events, self.ttl_seconds, self.max_backlog, self.max_backlog_seconds


@dataclass(frozen=True, slots=True)
class Retention:
    """The bounds of all topics."""

    usual: Bounds
    special: Mapping[str, Bounds]

    def of(self, topic: str) -> Bounds:
        """Return the bounds of one topic."""
        return self.special.get(topic, self.usual)

    @property
    def tightest(self) -> tuple[int, float]:
        """Fewer events, and younger ones, are kept in every topic."""
        every = (self.usual, *self.special.values())
        return min(one.max_events for one in every), min(one.ttl_seconds for one in every)


@dataclass(eq=False, slots=True)
class _Call:
    """Entries of one call, and where its answer goes."""

    entries: Sequence[tuple[str, bytes]]
    size: int
    answer: asyncio.Future[list[str]]


class Publisher:
    """Stores entries in the order of the calls. A call that is cancelled before its turn stores nothing."""

    def __init__(self, calls: Calls, retention: Retention) -> None:
        self._calls = calls
        self._retention = retention
        self._queue: deque[_Call] = deque()
        #: Works off the queue, in a task of its own: a caller that is cancelled must not keep others from their turn.
        self._task: asyncio.Task[None] | None = None
        #: By topic: entries since retention was looked after, and when that was, by the monotonic clock.
        self._untended: dict[str, tuple[int, float]] = {}

    async def append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """See `EventLog.append`."""
        if not entries:
            return []
        stored = [(topic, cast(bytes, body)) for topic, body in entries]
        answer: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Call(stored, sum(len(body) for _, body in stored), answer))
        if self._task is None:
            self._task = asyncio.create_task(self._work_off(), name="connector_sdk: publishing to PostgreSQL")
        return await answer

    async def aclose(self) -> None:
        """Wait for the end of what is under way; the connections are closed by now."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    async def _work_off(self) -> None:
        batch: Sequence[_Call] = ()
        try:
            while batch := self._next_batch():
                try:
                    await self._store(batch)
                except (BusUnavailableError, BusClosedError) as error:
                    if len(batch) > 1 and isinstance(error, BusUnavailableError) and not error.in_doubt:
                        # One of them may be to blame. Nothing was stored.
                        await self._store_one_by_one(batch)
                    else:
                        _fail(batch, error)
        finally:
            self._task = None
            # There are some left when the event loop ends, or because of a mistake in what is stored.
            for call in (*batch, *self._queue):
                call.answer.cancel()
            self._queue.clear()

    async def _store_one_by_one(self, batch: Sequence[_Call]) -> None:
        for call in batch:
            try:
                await self._store((call,))
            except (BusUnavailableError, BusClosedError) as error:
                _fail((call,), error)

    def _next_batch(self) -> list[_Call]:
        batch: list[_Call] = []
        entries = size = 0
        while self._queue:
            call = self._queue[0]
            if not call.answer.done():
                if batch and (entries + len(call.entries) > _ENTRIES or size + call.size > _BYTES):
                    break
                batch.append(call)
                entries += len(call.entries)
                size += call.size
            self._queue.popleft()
        return batch

    async def _store(self, batch: Sequence[_Call]) -> None:
        places: list[int] = []
        bodies: list[bytes] = []
        topics: dict[str, int] = {}
        for call in batch:
            for topic, body in call.entries:
                places.append(topics.setdefault(topic, len(topics) + 1))
                bodies.append(body)
        names = list(topics)
        amounts = [len(places)] if len(names) == 1 else [places.count(place) for place in topics.values()]
        tend = [self._is_time_to_tend(topic, amount) for topic, amount in zip(names, amounts, strict=True)]
        rules: Sequence[object] = (None,) * 5
        if any(tend):
            rules = (tend, *map(list, zip(*(self._retention.of(topic).parameters for topic in names), strict=True)))
        parameters = (names, places if len(names) > 1 else None, bodies, *rules)
        rows = await self._calls.rows(_PUBLISH, parameters, in_own_task=True)
        befores = cast("list[int]", rows[0][0])
        numbers = [0, *befores]
        positions: list[str] = []
        for place in places:
            numbers[place] += 1
            positions.append(str(numbers[place]))
        found = iter(positions)
        for call in batch:
            mine = list(islice(found, len(call.entries)))
            if not call.answer.done():
                call.answer.set_result(mine)

    def _is_time_to_tend(self, topic: str, amount: int) -> bool:
        now = asyncio.get_running_loop().time()
        count, since = self._untended.get(topic, (0, now))
        count += amount
        bounds = self._retention.of(topic)
        due = count * 10 >= bounds.max_events or (now - since) * 10 >= bounds.ttl_seconds
        self._untended[topic] = (0, now) if due else (count, since)
        return due


def _fail(batch: Sequence[_Call], error: BusUnavailableError | BusClosedError) -> None:
    for call in batch:
        if not call.answer.done():
            own = copy(error)  # each raises its own, with a traceback of its own
            own.__cause__ = error.__cause__
            call.answer.set_exception(own)
