"""What a bus tells of itself: frozen readings, JSON-ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

__all__ = ["BusHealth", "BusStats", "CloseReport", "RecoveryReport", "SubscriptionStats"]


class SubscriptionStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a subscription; `msgspec.json.encode(stats)` makes JSON of it. All counts are since it was made."""

    received: int = 0  #: entries taken from the log; one that came again counts again
    succeeded: int = 0  #: entries that the handler took without an error
    passed_over: int = 0  #: entries of other types, in a subscription to an event class
    retried: int = 0  #: entries that went back to the log for another attempt: a group's come again from there
    given_back: int = 0  #: entries that went back to the log unstarted, at the end
    dead_lettered: int = 0  #: entries given up, and kept with their evidence
    dropped: Mapping[str, int] = {}  #: entries given up without a trace but this, by reason
    waiting: int = 0  #: entries in hand that wait for the handler, or for another attempt
    running: int = 0  #: entries that the handler has now
    failures: int = 0  #: attempts that failed
    recovered: int = 0  #: entries that were a dead member's
    lost: Mapping[str, int] = {}  #: entries that it should have had and that the log has no more, by reason
    unsettled: int = 0  #: entries that are done, while the log has not confirmed it yet

    @property
    def balanced(self) -> bool:
        """Whether every entry received is accounted for."""
        gone = self.succeeded + self.passed_over + self.retried + self.given_back + self.dead_lettered
        return self.received == gone + sum(self.dropped.values()) + self.waiting + self.running


class BusStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a bus, subscriptions that ended included; `msgspec.json.encode(stats)` makes JSON of it."""

    events_published: int = 0  #: events that the log confirmed
    events_consumed: int = 0  #: entries taken from the log, once for each subscription that got them
    events_processed_success: int = 0  #: entries that a handler took without an error
    events_processed_failed: int = 0  #: attempts that failed, unreadable entries included
    messages_recovered: int = 0  #: entries taken over from members that died
    messages_sent_to_dlq: int = 0  #: entries that became dead letters
    handler_errors: int = 0  #: handlers that raised
    reconnections: int = 0  #: outages of the storage that ended
    publish_failures: int = 0  #: calls of publish that failed because of the storage
    passed_over: int = 0  #: entries of types that their subscription is not for
    retried: int = 0  #: entries that went back to the log for another attempt
    given_back: int = 0  #: entries that went back to the log unstarted
    dropped: Mapping[str, int] = {}  #: entries that a subscription gave up for want of room or time, by reason
    lost: Mapping[str, int] = {}  #: entries that the log lost before they were read, by reason
    losses_uncounted: int = 0  #: losses of which nobody can tell how many entries they were
    waiting: int = 0  #: entries in hand that wait
    running: int = 0  #: entries that handlers have now
    unsettled: int = 0  #: entries that are done, while the log has not confirmed it yet
    subscriptions: int = 0  #: subscriptions that live
    observer_errors: int = 0  #: observer methods that raised


class BusHealth(msgspec.Struct, frozen=True, kw_only=True):
    """An answer for a probe: whether all is well, and if not, why."""

    healthy: bool  #: connected, the storage answers, and every subscription gets its events
    connected: bool  #: the storage answered just now
    consuming: bool  #: there are subscriptions, and none is cut off from the storage
    pending: int = 0  #: entries that groups of this bus were given and have not finished
    dead_letters: int = 0  #: dead letters of the topics that this bus is subscribed to
    error: str = ""  #: one line for people, "" when there is nothing to say

    def __bool__(self) -> bool:
        return self.healthy


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a recovery on request did; returned when the handlers are done with what it took over."""

    checked: int = 0  #: entries of silent members that were looked at
    claimed: int = 0  #: of these, those that were taken over
    reprocessed: int = 0  #: of these, those whose handler succeeded
    dead_lettered: int = 0  #: of these, those that were given up
    failed: int = 0  #: of these, those whose handler failed and that come again

    @classmethod
    def sum(cls, reports: Sequence[RecoveryReport]) -> RecoveryReport:
        """Return one report for several."""
        counts = {name: sum(getattr(report, name) for report in reports) for name in cls.__struct_fields__}
        return cls(**counts)


class CloseReport(msgspec.Struct, frozen=True, kw_only=True):
    """How a bus, or a subscription, ended."""

    given_back: int = 0  #: entries that nobody began: the group's other members get them at once
    dropped: int = 0  #: entries of subscriptions without a group that nobody began
    cut_off: int = 0  #: handlers that were cancelled at the deadline; a group's entries come again
    unsettled: int = 0  #: entries that were done, while the log did not confirm it: they may come again

    @property
    def clean(self) -> bool:
        """Whether every handler came to its end, and the log knows it."""
        return not self.cut_off and not self.unsettled
