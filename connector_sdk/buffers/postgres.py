"""PostgresEventBuffer: events in a PostgreSQL database, shared by many processes and machines."""

from __future__ import annotations

from typing import Final

from connector_sdk.buffers.arguments import check_span
from connector_sdk.buffers.codec import Codec
from connector_sdk.buffers.drops import DropHook
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.postgres_store import PostgresStore, PostgresStoreOptions
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_integer
from connector_sdk.postgres_client import PostgresAddress, PostgresClient

__all__ = ["PostgresEventBuffer"]

_WEEK: Final = 7 * 86_400.0
_MOST_CONNECTIONS: Final = 100
_LONGEST_PREFIX: Final = 500  # it is the key of an index


class PostgresEventBuffer(DurableBuffer):
    """
    A buffer in a PostgreSQL database (13 or later) that any number of processes add to and take from.

    ::

        buffer = PostgresEventBuffer("postgresql://app:secret@db/events", key_prefix="clicks")
        client.on_actions(buffer.add).on_summary(buffer.add)
        ...
        for payload in await buffer.drain(): ...

    Needs psycopg 3 (`pip install 'connector_sdk[postgres]'`), and works in asyncio. An event that is stored is as safe as
    whatever else the server confirms; events that are added at the same time share a transaction. Each step is one
    transaction of one call, so nobody dies half-way through one, and a pooler in transaction mode may be between. All that is
    said of `DurableBuffer` holds: adding and draining never raise because the server is away, what is given up is told to
    *on_drop* and counted, what a dead drainer had comes again.

    The first use makes the schema `connector_buffers` with tables and functions for all buffers of the database; a user
    without the right to CREATE in the database finds what another has made, and needs SELECT, INSERT, UPDATE and DELETE on its
    tables. Changes of one buffer come one after the other; different prefixes do not wait for each other. Ages and leases go
    by the server's clock.

    Args:
        dsn: `postgresql://user:password@host:5432/database`, or words of libpq (`host=... dbname=...`), with all that libpq
            knows: TLS (`sslmode=verify-full`), several hosts for a failover.
        key_prefix: names the buffer in its database: a text of 1 or more characters.
        max_events: events that may wait, 1 or more; the oldest are dropped as "overflow". None for no bound.
        max_bytes: bytes of encoded events that may wait, 1 or more; the oldest are dropped as "overflow". None for no bound.
        max_age: seconds, above 0, from its arrival after which an event that waits is dropped as "expired". None for ever.
        max_concurrent: how many batches may be under way, 1 or more. An event that finds no place within *acquire_timeout* is
            dropped as "backpressure".
        on_drop: called as `on_drop(payload)` for each event given up because the server is slow, away or full. Events that are
            pushed out by a bound or expire are counted only.
        acquire_timeout: seconds, above 0; see `max_concurrent`.
        overflow: "drop_newest", or "block": `add` waits until the event is stored.
        dedupe_seconds: how long an event id is known after its event was taken or given up, 0 or more. An event with a
            known id (of the same `product_id`) is not stored again: it counts as "duplicate".
        max_dead_letters: dead letters that are kept, 1 or more; the oldest go.
        dead_letter_seconds: seconds, above 0, after which a dead letter goes.
        drain_hold: seconds, above 0, that the events of a drain stay out of sight if the drainer dies half-way.
        connections: how many connections this process may have open, 1 to 100: one to add, the others to take and to look. They
            are opened when they are needed.
        codec: "json", or "compact" for fewer bytes at some 30 us an event. Any process reads both.
        response_timeout: seconds, above 0, after which a request without an answer has failed.
        connect_timeout: seconds, above 0, that opening a connection may take.
        observer: an `Observer`; told `events_dropped`, `store_state` and `store_operation`.

    Raises:
        ConfigurationError: an option has a value that cannot work, or psycopg is not installed. Nothing is sent before the
            first use. At the first use, from any method: a later version of this library made the tables.
    """

    def __init__(
        self,
        dsn: str,
        key_prefix: str = "default",
        *,
        max_events: int | None = 1_000_000,
        max_bytes: int | None = 1024 * 1024 * 1024,
        max_age: float | None = None,
        max_concurrent: int = 10,
        on_drop: DropHook | None = None,
        acquire_timeout: float = 0.1,
        overflow: DurableOverflow = "drop_newest",
        dedupe_seconds: float = 600.0,
        max_dead_letters: int = 10_000,
        dead_letter_seconds: float = _WEEK,
        drain_hold: float = 15.0,
        connections: int = 3,
        codec: Codec = "json",
        response_timeout: float = 1.0,
        connect_timeout: float = 1.0,
        observer: object | None = None,
    ) -> None:
        options = PostgresStoreOptions(
            key_prefix=_prefix(key_prefix),
            max_events=None if max_events is None else check_integer("max_events", max_events, minimum=1),
            max_bytes=None if max_bytes is None else check_integer("max_bytes", max_bytes, minimum=1),
            max_age=None if max_age is None else check_span("max_age", max_age, above=0),
            dedupe=check_span("dedupe_seconds", dedupe_seconds),
            max_dead_letters=check_integer("max_dead_letters", max_dead_letters, minimum=1, maximum=2**31),
            dead_letter_life=check_span("dead_letter_seconds", dead_letter_seconds, above=0),
        )
        address = PostgresAddress.parse(dsn)
        others = check_integer("connections", connections, minimum=1, maximum=_MOST_CONNECTIONS) - 1
        patience = check_span("connect_timeout", connect_timeout, above=0)
        adder = PostgresClient(address, connections=1, connect_timeout=patience)
        client = PostgresClient(address, connections=others, connect_timeout=patience) if others else adder
        super().__init__(
            PostgresStore(client, options, adder=adder),
            max_concurrent=max_concurrent,
            acquire_timeout=acquire_timeout,
            overflow=overflow,
            on_drop=on_drop,
            codec=codec,
            response_timeout=response_timeout,
            drain_hold=drain_hold,
            batches_ahead=2,
            observer=observer,
        )


def _prefix(given: object) -> str:
    """Return a text that PostgreSQL can keep as one."""
    if (
        isinstance(given, str)
        and 0 < len(given) <= _LONGEST_PREFIX
        and not any(character == "\0" or "\ud800" <= character <= "\udfff" for character in given)
    ):
        return given
    raise ConfigurationError("key_prefix", given, f"a text of 1 to {_LONGEST_PREFIX} characters, without NUL")
