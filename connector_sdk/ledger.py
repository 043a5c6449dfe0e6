"""
The account of events: `received = delivered + buffered + in_flight + sum(dropped by reason)`.

Each long-lived object keeps its own account and shows it as a frozen `Ledger` in `stats()`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

__all__ = ["DropReason", "Ledger"]


class DropReason(enum.StrEnum):
    """Why an event was given up. The value is the stable name in metrics and in JSON."""

    OVERFLOW = "overflow"  #: no place, and the policy gave up the oldest or the newest
    REJECTED = "rejected"  #: no place, and the caller was told so by an error
    EXPIRED = "expired"  #: older than `max_age`, or it left the window of its session, or its session was idle too long
    CLEARED = "cleared"  #: discarded by `clear()`
    DUPLICATE = "duplicate"  #: the same event id was received before
    OVERSIZED = "oversized"  #: larger than `max_event_bytes`, or too many lines
    UNDECODABLE = "undecodable"  #: the data is no JSON object
    UNHANDLED = "unhandled"  #: nobody has registered for this type
    HANDLER_FAILED = "handler_failed"  #: a callback raised, and its policy is to go on
    BACKPRESSURE = "backpressure"  #: the store was slower than its writers, and no place came free in time
    UNAVAILABLE = "unavailable"  #: the store did not answer
    STORE_FULL = "store_full"  #: the store refused it for want of memory or disk
    EVICTED = "evicted"  #: its session, the one idle for longest, made room for others: `max_sessions`
    LOST = "lost"  #: the store had it and has it no more: restarted without its data, flushed, or the key was evicted
    DEAD_LETTER = (
        "dead_letter"  #: given up after all attempts failed, and kept with the evidence among the dead letters
    )
    ABANDONED = "abandoned"  #: still waiting or running when the client was told to stop; cut off by KeyboardInterrupt


class Ledger(msgspec.Struct, frozen=True, kw_only=True):
    """
    One consistent reading of an account.

    `balanced` is true when the sums agree; every count is taken in the same critical section.
    """

    received: int = 0  #: events that arrived
    delivered: int = 0  #: handed on and done
    buffered: int = 0  #: waiting here
    in_flight: int = 0  #: being worked on: a callback runs, a lease is open
    dropped: Mapping[DropReason, int] = {}  #: given up, by reason; reasons without a drop are left out

    @property
    def dropped_total(self) -> int:
        """The sum of all drops, duplicates included."""
        return sum(self.dropped.values())

    @property
    def accounted(self) -> int:
        """`delivered + buffered + in_flight + dropped_total`: equals `received` when the account balances."""
        return self.delivered + self.buffered + self.in_flight + self.dropped_total

    @property
    def balanced(self) -> bool:
        """Whether every event received is accounted for."""
        return self.received == self.accounted
