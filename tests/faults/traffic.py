"""Tasks that add and drain without a pause, while a test does things to the server."""

from __future__ import annotations

import statistics
import time
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from connector_sdk.buffers.redis import RedisEventBuffer
from tests.faults.books import PATIENCE, Books, check_account, settled


class Switches:
    """An Observer that notes when the breaker opened and closed."""

    def __init__(self) -> None:
        self.changes: list[tuple[float, str]] = []

    def store_state(self, *, store: str, state: str, reason: str) -> None:
        del store, reason
        self.changes.append((time.monotonic(), state))


class Traffic:
    """
    *adders* tasks that add, and a task that drains, from entering the block to its end; a third looks at the account.

    `calls` has when each `add` began and how many seconds it took. At the end of the block the adders have stopped; the
    buffer may still have events.
    """

    def __init__(
        self,
        buffer: RedisEventBuffer,
        books: Books,
        *,
        adders: int = 8,
        pause: float = 0.002,
        drains: bool = True,
        with_ids: bool = False,
        sessions: int = 5,
    ) -> None:
        self.calls: list[tuple[float, float]] = []
        self.looked = 0
        self._buffer = buffer
        self._books = books
        self._adders = adders
        self._pause = pause
        self._drains = drains
        self._with_ids = with_ids
        self._sessions = sessions
        self._over = False
        self._group: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._group = await anyio.create_task_group().__aenter__()
        for number in range(self._adders):
            self._group.start_soon(self._add, number)
        if self._drains:
            self._group.start_soon(self._drain)
        self._group.start_soon(self._look)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._over = True
        assert self._group is not None
        return await self._group.__aexit__(kind, error, traceback)

    async def _add(self, number: int) -> None:
        while not self._over:
            payload = self._books.new(f"s{number % self._sessions}", with_id=self._with_ids)
            started = time.monotonic()
            await self._buffer.add(payload)
            self.calls.append((started, time.monotonic() - started))
            await anyio.sleep(self._pause)

    async def _drain(self) -> None:
        while not self._over:
            self._books.took(await self._buffer.drain())
            await anyio.sleep(0.02)

    async def _look(self) -> None:
        while not self._over:
            check_account(await self._buffer.stats(), self._books)
            self.looked += 1
            await anyio.sleep(0.02)

    # -- waiting

    async def calls_after(self, moment: float, count: int) -> None:
        """Wait until *count* calls that began after *moment* have returned."""
        with anyio.fail_after(PATIENCE):
            while sum(began > moment for began, _ in self.calls) < count:
                await anyio.sleep(0.01)

    async def stored_again(self) -> float:
        """Wait until an event that was added from now on is stored; return the seconds that took."""
        started = time.monotonic()
        with anyio.fail_after(PATIENCE):
            while True:
                before = (await self._buffer.stats()).ledger.delivered
                payload = self._books.new("probe")
                await self._buffer.add(payload)
                told = self._books.dropped[payload.summary]
                if not told and (await self._buffer.stats()).ledger.delivered > before:
                    return time.monotonic() - started
                await anyio.sleep(0.005)

    def seconds(self, since: float, until: float) -> list[float]:
        """How long the calls took that began between two moments."""
        return [took for began, took in self.calls if since <= began < until]


def quantile(values: list[float], percent: int) -> float:
    """The value that *percent* percent of *values* do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def finish(buffer: RedisEventBuffer, books: Books, *, alone: bool = True) -> None:
    """
    Wait until all is stored or told, and take out the rest; what a lost drain holds comes when its time is up.

    *alone*: no other buffer has written to these books.
    """
    await settled(buffer)
    with anyio.fail_after(PATIENCE):
        while (shared := (await buffer.stats()).shared) is None or shared.buffered or shared.in_flight:
            books.took(await buffer.drain())
            await anyio.sleep(0.01)
    if alone:
        check_account(await buffer.stats(), books)
