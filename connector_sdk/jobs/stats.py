"""What a job tells of itself: frozen readings, JSON-ready."""

from __future__ import annotations

import msgspec

__all__ = ["JobHealth", "JobReport", "JobStats"]


class JobHealth(msgspec.Struct, frozen=True, kw_only=True):
    """An answer for a probe: whether all is well, and if not, why."""

    ok: bool  #: what a probe asks for
    reason: str = ""  #: one line for people, "" when there is nothing to say

    def __bool__(self) -> bool:
        return self.ok


class JobReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a run of a job ended."""

    drained: bool = False  #: nothing waits any more, and nothing was given back
    left: int | None = None  #: events that wait in the buffer, of the job's `types`; None when that cannot be said
    running: int = 0  #: plain handlers that did not end in time, and were left alone in their threads


class JobStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a job; `msgspec.json.encode(stats)` makes JSON of it. All counts are since the job was made."""

    name: str  #: the job's
    running: bool  #: whether it runs
    runs: int  #: runs begun
    missed_runs: int  #: scheduled times that passed during a run, and were merged into the next one
    received: int  #: events taken on lease; one that was given back and taken again counts twice
    delivered: int  #: events acknowledged after the handler returned
    dead_lettered: int  #: events given up, and kept with their evidence
    given_back: int  #: events that went back to the buffer, and come again
    in_flight: int  #: events on lease now
    calls: int  #: calls of the handler that ended
    failed_calls: int  #: of those, the ones that raised
    retries: int  #: calls for one event alone that had failed before
    splits: int  #: batches cut in two because the handler raised
    suspects: int  #: events that failed alone and are neither delivered nor given up
    expired_leases: int  #: leases that ran out, because the process was suspended for example
    outages: int  #: times that the buffer did not answer
    handler_outages: int  #: times that the handler failed for everything it was given
    hook_errors: int  #: `on_error` hooks that raised
    observer_errors: int  #: observer methods that raised
    last_error: str  #: the last failure of handler, buffer or dead letters, "" before the first
    next_run_in: (
        float | None
    )  #: seconds until the next run is due, below 0 when it is overdue; None when none is planned
    left: int | None  #: what the last report said: events left in the buffer; None when it is not known
    leader: bool | None  #: whether this process leads; None without `leader`

    @property
    def balanced(self) -> bool:
        """Whether `received = delivered + dead_lettered + given_back + in_flight`."""
        return self.received == self.delivered + self.dead_lettered + self.given_back + self.in_flight
