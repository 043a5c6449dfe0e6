"""
Addresses, errors and connections of PostgreSQL, for the parts of this library that store things there.

It knows nothing of buffers or buses. The driver is psycopg 3, on asyncio, which the extra `connector_sdk[postgres]`
installs; it is imported when an address is read. A cancelled caller never leaves a connection in the middle of something,
and every request ends within its time-out.
"""

from __future__ import annotations

from connector_sdk.postgres_client.address import PostgresAddress
from connector_sdk.postgres_client.client import PostgresClient
from connector_sdk.postgres_client.connection import Connection, abandon, close, connect, is_alive, sever
from connector_sdk.postgres_client.driver import load_psycopg
from connector_sdk.postgres_client.errors import PostgresRefusedError, PostgresUnavailableError, failure_of

__all__ = [
    "Connection",
    "PostgresAddress",
    "PostgresClient",
    "PostgresRefusedError",
    "PostgresUnavailableError",
    "abandon",
    "close",
    "connect",
    "failure_of",
    "is_alive",
    "load_psycopg",
    "sever",
]
