"""SQLiteEventBuffer: events in a file, with no server, shared by the processes of one machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, get_args
from urllib.parse import unquote

from connector_sdk.buffers.arguments import check_span
from connector_sdk.buffers.codec import Codec
from connector_sdk.buffers.drops import DropHook
from connector_sdk.buffers.durable import DurableBuffer, DurableOverflow
from connector_sdk.buffers.sqlite_file import Synchronous
from connector_sdk.buffers.sqlite_store import SQLiteStore, SQLiteStoreOptions
from connector_sdk.errors import ConfigurationError
from connector_sdk.options import check_choice, check_integer

__all__ = ["SQLiteEventBuffer"]

_SCHEME: Final = "sqlite:///"
_WEEK: Final = 7 * 86_400.0


class SQLiteEventBuffer(DurableBuffer):
    """
    A buffer in an SQLite file that any number of processes of one machine add to and take from.

    ::

        buffer = SQLiteEventBuffer("events.db")
        client.on_actions(buffer.add).on_summary(buffer.add)
        ...
        for payload in await buffer.drain(): ...

    An event that is stored is on the disk: each commit is synced before it is confirmed, so events survive a loss of power.
    Events that are added at the same time share a commit. The work is done by one thread, which is there while there is
    some. All that is said of `DurableBuffer` holds; a file that another process keeps locked for too long is a store that is
    away. A full disk is a store that is full: nothing is added when less than 16 MiB (a quarter of a smaller disk) are left,
    so that there is room to take events out; there is room again when events were taken out.

    Beside the file lie `<path>-wal` and `<path>-shm` while it is open, and `<path>-lock` for good. The folder must be on a
    disk of this machine, not on a network. A damaged file is renamed to `<path>.corrupt-<time>`, an error is logged,
    `stats().findings` tells, and a new file is begun; what was in the damaged one is counted as "lost" if its account can
    be read.

    Args:
        path: a path, or `sqlite:///relative.db`, `sqlite:////absolute.db` with percent-encoding. The folder must exist.
        max_events: events that may wait, 1 or more; the oldest are dropped as "overflow". None for no bound.
        max_bytes: bytes of encoded events that may wait, 1 or more; the oldest are dropped as "overflow". None for no bound.
            The file takes about half as much again, and does not shrink when it is drained: its room is used again.
        max_age: seconds, above 0, from its arrival after which an event that waits is dropped as "expired". None for ever.
        on_drop: called as `on_drop(payload)` for each event given up because the file is slow, away or full. Events that are
            pushed out by a bound or expire are counted only.
        max_concurrent: how many batches may be under way, 1 or more. An event that finds no place within *acquire_timeout* is
            dropped as "backpressure".
        acquire_timeout: seconds, above 0; see `max_concurrent`.
        overflow: "drop_newest", or "block": `add` waits until the event is stored.
        synchronous: "full", or "normal": a commit is confirmed before it is synced. Then events survive the end of any
            process, but a loss of power may cost those of the last seconds.
        dedupe_seconds: how long an event id is known after its event was taken or given up, 0 or more. An event with a
            known id (of the same `product_id`) is not stored again: it counts as "duplicate".
        max_dead_letters: dead letters that are kept, 1 or more; the oldest go.
        dead_letter_seconds: seconds, above 0, after which a dead letter goes.
        codec: "json", or "compact" for a smaller file at some 30 us an event. Any process reads both.
        response_timeout: seconds, above 0, after which a request without an answer has failed.
        observer: an `Observer`; told `events_dropped`, `store_state` and `store_operation`.

    Raises:
        ConfigurationError: an option has a value that cannot work. At the first use, from any method: the folder is missing
            or cannot be written to, or the file is another program's, or a later version's; it is not touched then.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_events: int | None = 1_000_000,
        max_bytes: int | None = 1024 * 1024 * 1024,
        max_age: float | None = None,
        on_drop: DropHook | None = None,
        max_concurrent: int = 10,
        acquire_timeout: float = 0.1,
        overflow: DurableOverflow = "drop_newest",
        synchronous: Synchronous = "full",
        dedupe_seconds: float = 600.0,
        max_dead_letters: int = 10_000,
        dead_letter_seconds: float = _WEEK,
        codec: Codec = "json",
        response_timeout: float = 1.0,
        observer: object | None = None,
    ) -> None:
        check_choice("synchronous", synchronous, get_args(Synchronous))
        options = SQLiteStoreOptions(
            max_events=None if max_events is None else check_integer("max_events", max_events, minimum=1),
            max_bytes=None if max_bytes is None else check_integer("max_bytes", max_bytes, minimum=1),
            max_age=None if max_age is None else check_span("max_age", max_age, above=0),
            dedupe=check_span("dedupe_seconds", dedupe_seconds),
            max_dead_letters=check_integer("max_dead_letters", max_dead_letters, minimum=1),
            dead_letter_life=check_span("dead_letter_seconds", dead_letter_seconds, above=0),
        )
        super().__init__(
            SQLiteStore(_path_of(path), options, synchronous=synchronous),
            max_concurrent=max_concurrent,
            acquire_timeout=acquire_timeout,
            overflow=overflow,
            on_drop=on_drop,
            codec=codec,
            response_timeout=response_timeout,
            batches_ahead=1,
            observer=observer,
        )


def _path_of(given: object) -> Path:
    """Return the absolute path: the process may change its folder later."""
    allowed = "the path of a file, or sqlite:/// and the path of a file"
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if isinstance(text, str) and text.startswith("sqlite:"):
        text = unquote(text.removeprefix(_SCHEME)) if text.startswith(_SCHEME) else None
    if not isinstance(text, str) or not text or "\0" in text or text == ":memory:" or text.endswith(os.sep):
        raise ConfigurationError("path", given, allowed)
    return Path(os.path.abspath(text))
