"""One connection: opening it, looking whether it is alive, and ending it in each way that is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, TypeAlias

from connector_sdk.postgres_client.address import PostgresAddress
from connector_sdk.postgres_client.driver import load_psycopg
from connector_sdk.postgres_client.errors import PostgresUnavailableError, failure_of

if TYPE_CHECKING:
    import psycopg

__all__ = ["Connection", "abandon", "close", "connect", "is_alive", "sever"]

#: A connection in autocommit, whose rows are tuples.
Connection: TypeAlias = "psycopg.AsyncConnection[tuple[object, ...]]"

#: Connections that the parent of this process has: psycopg must not collect them, it would complain.
_left_behind: list[Connection] = []


async def connect(address: PostgresAddress, *, timeout: float, application_name: str = "connector_sdk") -> Connection:
    """
    Open a connection in autocommit within *timeout* seconds. Nothing is prepared on the server: a pooler may be between.
    Transactions that are begun with `connection.transaction()` are READ COMMITTED.

    The name is what pg_stat_activity shows; one in the address has precedence. Raises PostgresUnavailableError or
    PostgresRefusedError.
    """
    psycopg = load_psycopg()
    connection: Connection
    try:
        async with asyncio.timeout(timeout):
            connection = await psycopg.AsyncConnection.connect(
                address.dsn, autocommit=True, prepare_threshold=None, fallback_application_name=application_name
            )
    except TimeoutError as error:
        raise PostgresUnavailableError(f"{address}: no connection within {timeout:.3g} s") from error
    except psycopg.Error as error:
        # A server that does not let us in says so as the reason of a connection that failed: its SQLSTATE is lost.
        raise failure_of(error, address, sent=False) from error
    except OSError as error:
        raise PostgresUnavailableError(f"{address}: {error.strerror or error}") from error
    # What follows BEGIN, whatever the default of the server: who waited for a lock must see what was done meanwhile.
    await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    return connection


def is_alive(connection: Connection) -> bool:
    """Whether a connection that nobody uses can take a request, as far as one can see without asking."""
    wire = connection.pgconn
    try:
        # Whoever ends a connection says so: it is read here, and not as the answer of the next request.
        for _ in range(100):
            if connection.closed:
                return False
            if not _is_readable(wire.socket):
                return bool(wire.transaction_status == 0)
            wire.consume_input()
    except load_psycopg().Error:
        pass
    return False


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def sever(connection: Connection) -> None:
    """End what is under way at once: whoever waits for an answer gets an error, and the connection is of no more use."""
    with contextlib.suppress(OSError, load_psycopg().Error):
        ours = socket.socket(fileno=os.dup(connection.pgconn.socket))
        with ours:
            ours.shutdown(socket.SHUT_RDWR)


def close(connection: Connection) -> None:
    """Close a connection that nobody uses; needs no event loop, and waits for nobody."""
    connection.pgconn.finish()


def abandon(connection: Connection) -> None:
    """In the child of a fork: let go of a connection that the parent goes on with, without a word to the server."""
    _left_behind.append(connection)
    with contextlib.suppress(OSError, load_psycopg().Error):
        os.close(connection.pgconn.socket)
