"""The one connection to a server that all callers share, opened when it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from connector_sdk.redis_client.connection import Connection
from connector_sdk.redis_client.errors import RedisRefusedError, RedisUnavailableError

__all__ = ["Link"]

_NEVER = float("inf")
_VERIFY_INTERVAL = 1.0  # seconds
_Outcome: TypeAlias = "Connection | RedisRefusedError | RedisUnavailableError"


class Link:
    """
    Keeps one connection to use, made by *opener*, which must bring its own time limit. Belongs to one event loop.

    *verifier* tells whether a connection still leads to the right server; it is asked once in a second of use.
    """

    def __init__(
        self,
        label: str,
        opener: Callable[[], Awaitable[Connection]],
        verifier: Callable[[Connection], Awaitable[bool]] | None = None,
    ) -> None:
        self.label = label
        #: The connection to use, if it is open.
        self.connection: Connection | None = None
        #: When to call `verify` next, by the clock of the event loop.
        self.verify_at = _NEVER
        self._opener = opener
        self._verifier = verifier
        self._verification: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[_Outcome] | None = None
        # All that are not closed yet: the current one, and those that were given up.
        self._connections: set[Connection] = set()

    async def open(self, timeout: float) -> Connection:
        """
        Return the open connection, after opening it if need be; callers at the same time share one attempt.

        Raises what the attempt raised, or RedisUnavailableError after *timeout* seconds; the attempt goes on then, for
        the next caller.
        """
        if self.connection is not None and self.connection.is_open:
            return self.connection
        if self._attempt is None:
            self._attempt = asyncio.create_task(self._open(), name=f"connector_sdk: connecting to {self.label}")
        attempt = self._attempt
        await asyncio.wait((attempt,), timeout=timeout)
        if not attempt.done():
            raise RedisUnavailableError(f"cannot connect to {self.label}: no connection within {timeout:.3g} s")
        if attempt.cancelled():
            raise RedisUnavailableError(f"cannot connect to {self.label}: the client was closed")
        outcome = attempt.result()
        if isinstance(outcome, Connection):
            return outcome
        # Each caller raises an error of its own: an exception object is changed by being raised.
        if isinstance(outcome, RedisRefusedError):
            raise RedisRefusedError(outcome.code, outcome.message) from outcome
        raise RedisUnavailableError(str(outcome)) from outcome

    async def _open(self) -> _Outcome:
        try:
            connection = await self._opener()
        except (RedisRefusedError, RedisUnavailableError) as error:
            return error
        finally:
            self._attempt = None
        self.connection = connection
        self._plan_verification()
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        return connection

    def verify(self) -> None:
        """Begin to ask whether the connection still leads to the right server; it is retired if not."""
        self.verify_at = _NEVER
        if self.connection is not None and self._verifier is not None:
            name = f"connector_sdk: looking after {self.label}"
            self._verification = asyncio.create_task(self._verify(self._verifier, self.connection), name=name)

    async def _verify(self, verifier: Callable[[Connection], Awaitable[bool]], connection: Connection) -> None:
        try:
            if not await verifier(connection):
                connection.retire()
        finally:
            # Also after an error, which asyncio reports: it may be over a second later.
            self._verification = None
            self._plan_verification()

    def _plan_verification(self) -> None:
        if self._verifier is not None and self._verification is None:
            self.verify_at = asyncio.get_running_loop().time() + _VERIFY_INTERVAL

    def abort(self, reason: str) -> None:
        """Close everything, at once. Requests fail with *reason*."""
        for task in (self._attempt, self._verification):
            if task is not None:
                task.cancel()
        for connection in self._connections:
            connection.abort(reason)

    def abandon(self) -> None:
        """Let go of everything without the event loop, which is gone."""
        for connection in self._connections:
            connection.abandon()
        self._connections.clear()

    async def wait_closed(self) -> None:
        """Wait until what `abort` closed is closed, a second at most."""
        tasks = [task for task in (self._attempt, self._verification) if task is not None]
        waiting = [*tasks, *(connection.closed for connection in self._connections)]
        if waiting:
            await asyncio.wait(waiting, timeout=1.0)
