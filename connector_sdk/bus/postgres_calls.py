"""Requests of a `PostgresLog`: every statement goes through here, and every error comes out as one of the bus."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, TypeAlias, cast

from connector_sdk.bus.postgres_schema import Names, prepare
from connector_sdk.errors import BusClosedError, BusUnavailableError, ClientStateError, ConfigurationError
from connector_sdk.observe import RateLimitedLogger
from connector_sdk.postgres_client import (
    Connection,
    PostgresAddress,
    PostgresClient,
    PostgresRefusedError,
    PostgresUnavailableError,
)

__all__ = ["Calls", "Row"]

_log = RateLimitedLogger(logging.getLogger(__name__))

#: Columns of our own functions, whose types we know.
Row: TypeAlias = "tuple[object, ...]"

#: No such table, function or schema; no row where there is always one: somebody has removed what we made.
_GONE: Final = frozenset({"42P01", "42883", "3F000", "P0002"})
_CONNECTIONS: Final = 4
_PREPARING: Final = 5.0  # times the response timeout: another may hold the lock


class Calls:
    """A client for the tables of one prefix."""

    def __init__(
        self, address: PostgresAddress, names: Names, *, connect_timeout: float, response_timeout: float
    ) -> None:
        self.address = address
        self.names = names
        self.connect_timeout = connect_timeout
        self.response_timeout = response_timeout
        #: After so many uses a statement is prepared on the server; None behind a pooler, where that cannot be.
        self.prepare_threshold: int | None = None
        self._client = PostgresClient(address, connections=_CONNECTIONS, connect_timeout=connect_timeout)
        self._closed = False

    async def prepare(self) -> None:
        """Make tables and functions; ConfigurationError for what waiting cannot mend."""
        try:
            await self._prepare(repair=False)
        except PostgresRefusedError as error:
            raise ConfigurationError(
                "dsn", self.address.label, f"a database that lets this user create tables ({error})"
            ) from error
        except PostgresUnavailableError as error:
            raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error

    async def rows(
        self, statement: str, parameters: Sequence[object] = (), *, repeatable: bool = False, in_own_task: bool = False
    ) -> list[Row]:
        """
        Run one statement, written for the prefix "events", and return its rows; *repeatable*: it may be run twice.

        *in_own_task*: the caller is a task that nobody cancels in the middle.
        """
        text = self.names.text(statement)
        run = self._client.run_here if in_own_task else self._client.run

        async def work(connection: Connection) -> list[Row]:
            if connection.prepare_threshold != self.prepare_threshold:
                connection.prepare_threshold = self.prepare_threshold
            cursor = await connection.execute(text, parameters or None, binary=True)
            return await cursor.fetchall()

        try:
            try:
                return await run(work, timeout=self.response_timeout, repeatable=repeatable)
            except PostgresRefusedError as error:
                if error.code not in _GONE or error.in_doubt:
                    raise
                _log.warning("gone", "%s: tables of the bus were gone and are made anew (%s)", self.address, error)
                await self._prepare(repair=True)
            return await run(work, timeout=self.response_timeout, repeatable=repeatable)
        except (PostgresUnavailableError, PostgresRefusedError) as error:
            raise BusUnavailableError(str(error), in_doubt=error.in_doubt) from error
        except ClientStateError as error:
            raise BusClosedError(f"the log in {self.address} was closed" if self._closed else str(error)) from error

    async def value(self, statement: str, parameters: Sequence[object] = (), *, repeatable: bool = False) -> object:
        """Run one statement that returns one value."""
        ((value,),) = await self.rows(statement, parameters, repeatable=repeatable)
        return value

    async def number(self, statement: str, parameters: Sequence[object] = (), *, repeatable: bool = False) -> int:
        """Run one statement that returns a whole number."""
        return cast(int, await self.value(statement, parameters, repeatable=repeatable))

    async def aclose(self) -> None:
        """Close the connections."""
        self._closed = True
        await self._client.aclose()

    async def _prepare(self, *, repair: bool) -> None:
        async def work(connection: Connection) -> None:
            await prepare(connection, self.names, repair=repair)

        await self._client.run(work, timeout=_PREPARING * self.response_timeout)
