"""Who waits for something to happen in a `PostgresLog`, and the connection that listens for it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Final

from connector_sdk.bus.postgres_calls import Calls
from connector_sdk.errors import BusUnavailableError, ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.postgres_client import (
    Connection,
    PostgresRefusedError,
    PostgresUnavailableError,
    abandon,
    close,
    connect,
    failure_of,
    load_psycopg,
)

__all__ = ["Listener", "Waiter", "Wakeups"]

_log = RateLimitedLogger(logging.getLogger(__name__))

#: Seconds after which even those look who are told of everything.
_SELDOM: Final = 15.0
_TRIAL: Final = 5.0  # seconds until a notification that we sent ourselves counts as swallowed
_PROBE: Final = 5.0  # seconds between looks whether the connection that listens is still there
_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0)  # seconds before another attempt to listen


class Waiter:
    """Somebody who waits for entries of some topics, for new topics, or for entries that come again to a group."""

    def __init__(self, topics: Collection[str], group: str | None, catalogue: bool) -> None:
        self._topics = topics
        self._group = group
        self._catalogue = catalogue
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Let it look."""
        self._news.set()

    def hear(self, kind: str, name: str) -> None:
        """Take notice of a notification; see postgres_publish.sql for its kinds."""
        if kind == "t":
            concerned = name in self._topics
        elif kind == "g":
            concerned = name == self._group
        elif kind == "c":
            concerned = self._catalogue or name in self._topics
        else:
            concerned = True
        if concerned:
            self._news.set()

    def look(self) -> None:
        """Call it before looking: what happens from here on ends the next `wait`."""
        self._news.clear()

    async def wait(self, seconds: float) -> None:
        """Wait until something happens, *seconds* at most."""
        if seconds <= 0 or self._news.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return


class Wakeups:
    """Those who wait. *poll_interval*: seconds between looks while nobody listens for notifications."""

    def __init__(self, poll_interval: float) -> None:
        self._poll_interval = poll_interval
        self._waiters: set[Waiter] = set()
        self.listening = False

    @property
    def longest(self) -> float:
        """For how many seconds one may wait without looking."""
        return _SELDOM if self.listening else self._poll_interval

    @contextmanager
    def waiter(self, topics: Collection[str], *, group: str | None = None, catalogue: bool = False) -> Iterator[Waiter]:
        """Give somebody a place who waits."""
        waiter = Waiter(topics, group, catalogue)
        self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            self._waiters.discard(waiter)

    def tell(self, payload: str) -> None:
        """Wake those whom a notification concerns."""
        kind, name = payload[:1], payload[1:]
        for waiter in self._waiters:
            waiter.hear(kind, name)

    def tell_all(self) -> None:
        """Wake everybody: who knows what was missed."""
        for waiter in self._waiters:
            waiter.wake()


class Listener:
    """
    A connection of its own that listens, opened again whenever it is lost.

    What is notified meanwhile is missed, and does no harm: those who wait look from time to time until it listens again,
    and at once when it does.
    """

    def __init__(self, calls: Calls, wakeups: Wakeups, *, required: bool) -> None:
        self._calls = calls
        self._wakeups = wakeups
        self._required = required
        self._connection: Connection | None = None
        self._attended: int | None = None
        self._lost = asyncio.Event()
        self._heard = asyncio.Event()
        self._token = ""
        start_empty_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Leave the connection to the parent, without a word to the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            abandon(connection)

    async def open(self) -> bool:
        """
        Listen; return False when notifications do not arrive, as behind a pooler that lends a connection for a transaction.

        Raises BusUnavailableError, and ConfigurationError when they must arrive.
        """
        calls = self._calls
        try:
            connection = await connect(
                calls.address, timeout=calls.connect_timeout, application_name="connector_sdk listening"
            )
        except PostgresRefusedError as error:
            raise ConfigurationError("dsn", calls.address.label, f"one that lets us in ({error})") from error
        except PostgresUnavailableError as error:
            raise BusUnavailableError(str(error)) from error
        self._connection = connection
        try:
            arrives = await self._try_out(connection)
        except BaseException:
            self._let_go()
            raise
        if not arrives:
            self._let_go()
            if self._required:
                raise ConfigurationError(
                    "notify", True, '"auto" or False here: notifications do not arrive, perhaps because of a pooler'
                )
            return False
        self._wakeups.listening = True
        self._wakeups.tell_all()
        return True

    async def run(self) -> None:
        """Keep listening until cancelled; begin with a connection that is open, or without."""
        attempt = 0
        try:
            while True:
                if self._connection is None:
                    await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                    attempt += 1
                    try:
                        if not await self.open():
                            self._say("notifications do not arrive any more")
                            attempt = len(_PAUSES)
                            continue
                    except (BusUnavailableError, ConfigurationError) as error:
                        self._say(str(error))
                        continue
                attempt = 0
                await self._watch()
        finally:
            self._let_go()

    # ------------------------------------------------------------------------------------------ one connection

    async def _try_out(self, connection: Connection) -> bool:
        """Listen, and notify oneself by another connection."""
        self._lost.clear()
        self._heard.clear()
        self._token = f"?{secrets.token_hex(8)}"
        connection.add_notify_handler(lambda notice: self._hear(notice.payload))
        channel = self._calls.names.channel
        await self._ask(connection, f'LISTEN "{channel}"')
        self._attend(connection)
        await self._calls.rows("SELECT pg_notify(%s, %s)", (channel, self._token), repeatable=True)
        try:
            async with asyncio.timeout(min(self._calls.response_timeout, _TRIAL)):
                await self._heard.wait()
        except TimeoutError:
            return False
        if self._lost.is_set():
            raise BusUnavailableError(f"{self._calls.address}: the connection that listens was lost")
        return True

    async def _watch(self) -> None:
        """Return when the connection is lost."""
        connection = self._connection
        assert connection is not None
        while True:
            try:
                async with asyncio.timeout(_PROBE):
                    await self._lost.wait()
                self._say("the connection that listens was lost")
                break
            except TimeoutError:
                pass
            # The other side may be gone without a word. Nobody else may read while an answer is awaited.
            self._disregard()
            try:
                await self._ask(connection, "SELECT 1")
            except BusUnavailableError as error:
                self._say(str(error))
                break
            self._attend(connection)
        self._let_go()

    async def _ask(self, connection: Connection, statement: str) -> None:
        calls = self._calls
        try:
            async with asyncio.timeout(calls.response_timeout):
                await connection.execute(statement.encode())
        except TimeoutError as error:
            raise BusUnavailableError(f"{calls.address}: no answer in time") from error
        except load_psycopg().Error as error:
            raise BusUnavailableError(str(failure_of(error, calls.address, sent=True))) from error

    def _attend(self, connection: Connection) -> None:
        """Read notifications as they come, without a task that would have to be woken for each."""
        self._attended = connection.pgconn.socket
        asyncio.get_running_loop().add_reader(self._attended, self._read, connection)
        self._read(connection)

    def _disregard(self) -> None:
        descriptor, self._attended = self._attended, None
        if descriptor is not None:
            asyncio.get_running_loop().remove_reader(descriptor)

    def _read(self, connection: Connection) -> None:
        wire = connection.pgconn
        try:
            wire.consume_input()
            while (notice := wire.notifies()) is not None:
                self._hear(notice.extra.decode(errors="replace"))
        except load_psycopg().Error:
            self._disregard()
            self._lost.set()
            self._heard.set()

    def _hear(self, payload: str) -> None:
        if payload.startswith("?"):
            if payload == self._token:
                self._heard.set()
        else:
            self._wakeups.tell(payload)

    def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        self._wakeups.listening = False
        self._wakeups.tell_all()
        self._disregard()
        if connection is not None:
            close(connection)

    def _say(self, why: str) -> None:
        _log.warning("listening", "%s: not told of new events: %s; looking from time to time", self._calls.address, why)
