"""A place in a PostgreSQL database for one test: stores and buffers over it, and other processes that use it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import psycopg

from connector_sdk.buffers.postgres import PostgresEventBuffer
from connector_sdk.buffers.postgres_store import PostgresStore, PostgresStoreOptions
from connector_sdk.postgres_client import PostgresAddress, PostgresClient
from connector_sdk.testing.store_case import Shard
from tests.buffers.sqlite_place import Program

#: Seconds after which what must happen has not happened.
PATIENCE: Final = 30.0

_PROGRAM: Final = """
import sys, time, anyio
from connector_sdk import SummaryPayload
from connector_sdk.buffers.postgres import PostgresEventBuffer

dsn, prefix, start, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def event(number):
    return SummaryPayload("shop", "s", str(number), 0, time.time(), f"id-{number}")

def say(text):
    print(text, flush=True)

async def main():
    buffer = PostgresEventBuffer(dsn, prefix, overflow="block", response_timeout=30.0, connect_timeout=30.0)
"""


class PostgresPlace:
    """One prefix in one database."""

    def __init__(self, dsn: str, prefix: str, stack: contextlib.AsyncExitStack) -> None:
        self.dsn = dsn
        self.prefix = prefix
        self._stack = stack

    @classmethod
    @asynccontextmanager
    async def at(cls, dsn: str, prefix: str = "test") -> AsyncIterator[PostgresPlace]:
        """Everything made here is closed at the end."""
        async with contextlib.AsyncExitStack() as stack:
            yield cls(dsn, prefix, stack)

    def client(self, **options: Any) -> PostgresClient:
        """Make a client."""
        return PostgresClient(PostgresAddress.parse(self.dsn), **{"connect_timeout": PATIENCE, **options})

    def store(self, *, patience: float = PATIENCE, **options: Any) -> Shard:
        """Make a store; times in seconds."""
        store = PostgresStore(self.client(), PostgresStoreOptions(key_prefix=self.prefix, **options))
        self._stack.push_async_callback(store.aclose)
        return Shard(store, 0, patience)

    def buffer(self, **options: Any) -> PostgresEventBuffer:
        """Make a buffer that is patient with a busy machine."""
        patient = {"response_timeout": PATIENCE, "acquire_timeout": PATIENCE, "connect_timeout": PATIENCE}
        buffer = PostgresEventBuffer(self.dsn, self.prefix, **{**patient, **options})
        self._stack.push_async_callback(buffer.aclose)
        return buffer

    @contextlib.contextmanager
    def program(self, body: str, start: int = 0, count: int = 0) -> Iterator[Program]:
        """Run lines of an async function in another process; they have `buffer`, `event`, `say`, `start` and `count`."""
        lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
        arguments = [self.dsn, self.prefix, str(start), str(count)]
        program = Program(_PROGRAM + lines + "\nanyio.run(main)\n", arguments)
        try:
            yield program
        finally:
            program.end()

    @contextlib.contextmanager
    def raw(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Open a connection beside."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            yield connection

    def terminate_all(self) -> int:
        """End every other connection to the database, as an administrator does, and wait for that; return how many."""
        with self.raw() as connection:
            found = connection.execute(
                "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
            return len(found.fetchall())


async def until_empty(shard: Shard) -> list[int]:
    """Drain, waiting for leases to run out; return the numbers of the events."""
    found: list[int] = []
    with anyio.fail_after(PATIENCE):
        while True:
            found += [int(event.event_id or -1) for event in await shard.drain()]
            census = await shard.census()
            if not census.ledger.buffered and not census.ledger.in_flight:
                return found
            await anyio.sleep(0.02)
