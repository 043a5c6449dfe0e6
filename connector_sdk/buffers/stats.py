"""What a buffer tells of itself: frozen readings, JSON-ready."""

from __future__ import annotations

import msgspec

from connector_sdk.ledger import Ledger

__all__ = ["BufferStats"]


class BufferStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a buffer, taken in one critical section; `msgspec.json.encode(stats)` makes JSON of it."""

    ledger: Ledger  #: the account of all events since the buffer was made
    size: int  #: events waiting
    bytes: int | None  #: their encoded JSON in bytes, None without `max_bytes`
    max_size: int  #: the bound in events, 0 without one
    oldest_age: float | None  #: seconds the oldest waiting event has been here at most, None when none waits
    leases: int  #: leases open that hold events
    dead_letters: int  #: events given up and kept among the dead letters
    waiting_adds: int  #: callers whose payload waits for room (overflow "block")
    untold_drops: int  #: drops that `on_drop` or the Observer have not been told yet
    hook_errors: int  #: calls of `on_drop` that raised
    observer_errors: int  #: observer methods that raised
    closed: bool  #: `close()` was called
