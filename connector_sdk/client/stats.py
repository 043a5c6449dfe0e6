"""What a client tells of itself: frozen readings, JSON-ready."""

from __future__ import annotations

import msgspec

from connector_sdk.client.session import ConnectionState
from connector_sdk.ledger import Ledger

__all__ = ["ClientStats", "StopReport"]


class StopReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    drained: bool = True  #: everything received was finished
    left: int = 0  #: events given up: waiting, or interrupted
    running: int = 0  #: handlers in threads that did not end in time and were left alone


class ClientStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a client; `msgspec.json.encode(stats)` makes JSON of it."""

    url: str  #: without secrets
    state: ConnectionState  #: where the client is
    closed_reason: str  #: why it ended, "" while it runs
    ledger: Ledger  #: the account of all events since the client was made
    connections: int  #: connections that were opened
    failures: int  #: attempts failed since the back-off last started over
    gaps: int  #: reconnects that the server could not resume
    queue_size: int  #: events waiting for their callbacks
    parked: int  #: events put aside by the policy "park"
    handler_errors: int  #: callbacks that raised, after their retries
    hook_errors: int  #: on_... hooks that raised
    observer_errors: int  #: observer methods that raised
    checkpoint_errors: int  #: saves of the checkpoint that failed
    last_event_id: str  #: the id received last, "" without ids
    finished_event_id: str  #: the id up to which every event is finished, "" before the first
    checkpoint_event_id: str  #: the id stored in the checkpoint, "" without one
    last_event_age: float | None  #: seconds since something was received, None before that
    oldest_age: float | None  #: seconds that the oldest unfinished event has been here, None when there is none
