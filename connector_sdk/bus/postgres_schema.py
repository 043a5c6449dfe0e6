"""The tables and functions of a `PostgresLog`: made at connect, or brought up to this version of the library."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Final

from connector_sdk.errors import ConfigurationError
from connector_sdk.postgres_client import Connection

__all__ = ["Names", "prepare"]

#: Raise the first with each change of postgres_schema.sql that earlier versions of the library could not live with, and the
#: second with each change of any file.
_TABLES: Final = 1
_STEPS: Final = 3
_LOCK: Final = 0x636F6E6E_62757300  # of those who prepare a database at the same time
_FOLDER: Final = "connector_sdk.bus.sql"
_FILES: Final = (
    "postgres_schema.sql",
    "postgres_publish.sql",
    "postgres_read.sql",
    "postgres_claim.sql",
    "postgres_finish.sql",
    "postgres_once.sql",
)
_NAME: Final = re.compile(r"'events_(\w+)'|\bevents_(\w+)")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.:-]{1,40}")


class Names:
    """What tables, functions and the channel are called: texts are written for the prefix "events"."""

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str) or _PREFIX.fullmatch(prefix) is None:
            raise ConfigurationError("key_prefix", prefix, "1 to 40 letters, digits and _ . : - of ASCII")
        self.prefix: Final = prefix
        self.channel: Final = f"{prefix}_wakeup"
        self._texts: dict[str, bytes] = {}

    def text(self, statement: str) -> bytes:
        """Return a statement with the names of this prefix."""
        found = self._texts.get(statement)
        if found is None:
            found = self._texts[statement] = _NAME.sub(self._name, statement).encode()
        return found

    def _name(self, found: re.Match[str]) -> str:
        literal, identifier = found.groups()
        return f"'{self.prefix}_{literal}'" if literal else f'"{self.prefix}_{identifier}"'


async def prepare(connection: Connection, names: Names, *, repair: bool = False) -> None:
    """
    See to it that tables and functions are there; with *repair* also when they seem to be.

    Functions of an earlier version are replaced; those of a later one, which serve this one as well, are left. A user without
    the right to create tables finds what another has made. Raises ConfigurationError when a later version made the tables.
    """
    if not repair and await _is_ready(connection, names):
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Whoever waited for the lock finds everything done, most of the time.
        if not repair and await _is_ready(connection, names):
            return
        for file in _FILES:
            await connection.execute(names.text(_text_of(file)))
        statement = names.text(
            "INSERT INTO events_log AS l (tables, steps, topics) SELECT %s, %s, events_number_now() "
            "ON CONFLICT (one) DO UPDATE SET steps = excluded.steps"
        )
        await connection.execute(statement, (_TABLES, _STEPS))


async def _is_ready(connection: Connection, names: Names) -> bool:
    found = await connection.execute("SELECT to_regclass(%s) IS NOT NULL", (f'"{names.prefix}_log"',))
    if await found.fetchone() != (True,):
        return False
    row = await (await connection.execute(names.text("SELECT tables, steps FROM events_log"))).fetchone()
    if row is None:
        return False
    tables, steps = row
    if not isinstance(tables, int) or not isinstance(steps, int) or tables > _TABLES:
        raise ConfigurationError(
            "key_prefix",
            names.prefix,
            f"that of tables of version {_TABLES} or earlier; a later version of this library made these ({tables})",
        )
    return steps >= _STEPS


@cache
def _text_of(name: str) -> str:
    return resources.files(_FOLDER).joinpath(name).read_text(encoding="utf-8")
