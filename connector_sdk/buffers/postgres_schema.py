"""The tables and functions of a PostgresStore: made at the first use, or brought up to this version of the library."""

from __future__ import annotations

from importlib import resources
from typing import Final

from connector_sdk.errors import ConfigurationError
from connector_sdk.postgres_client import Connection

__all__ = ["prepare"]

#: Raise them with each change of postgres_tables.sql, and of postgres_steps.sql.
_TABLES: Final = 1
_STEPS: Final = 1
_LOCK: Final = 0x636F6E6E_62756673  # of those who prepare a database at the same time
_FIND: Final = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = 'connector_buffers' AND c.relname = 'release')"
)
_FOLDER: Final = "connector_sdk.buffers.sql"


async def prepare(connection: Connection) -> None:
    """
    See to it that the schema `connector_buffers` is there.

    An earlier version's functions are replaced; those of a later one, which serve this one as well, are left. A user without
    the right to make a schema finds what another has made. Raises ConfigurationError when a later version made the tables.
    """
    if await _is_ready(connection):
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        if await _is_ready(connection):
            return
        if not await _is_there(connection):
            await connection.execute(_text_of("postgres_tables.sql"))
        await connection.execute(_text_of("postgres_steps.sql"))
        await connection.execute("UPDATE connector_buffers.release SET steps = %s", (_STEPS,))


async def _is_ready(connection: Connection) -> bool:
    if not await _is_there(connection):
        return False
    row = await (await connection.execute("SELECT tables, steps FROM connector_buffers.release")).fetchone()
    if row is None:
        return False
    tables, steps = row
    if not isinstance(tables, int) or not isinstance(steps, int) or tables > _TABLES:
        raise ConfigurationError(
            "dsn",
            connection.info.dbname,
            f"a database whose schema connector_buffers is of version {_TABLES} or earlier; a later version of this library "
            f"made it ({tables})",
        )
    return steps >= _STEPS


async def _is_there(connection: Connection) -> bool:
    # By a query, and not by to_regclass: that may remember, from before it waited for the lock, that there was none.
    found = await connection.execute(_FIND)
    return await found.fetchone() == (True,)


def _text_of(name: str) -> bytes:
    return resources.files(_FOLDER).joinpath(name).read_bytes()
