"""What consumers of streams tell of themselves."""

from __future__ import annotations

import msgspec

__all__ = ["ConsumerStats", "StreamLag"]


class ConsumerStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a consumer; `msgspec.json.encode(stats)` makes JSON of it."""

    streams: tuple[str, ...]
    paused: tuple[str, ...]
    received: int  #: entries handed out
    redelivered: int  #: of these, those that were not at their first attempt
    acknowledged: int  #: entries that were pending when they were acknowledged
    nacked: int  #: entries that were let come again
    recovered: int  #: entries taken over from dead consumers
    trimmed: int  #: entries that were pending and that the stream had no more
    healed: int  #: groups that the server lost and that were made anew
    failed: int  #: calls of a handler that raised, in `run`
    outages: int  #: times that the server went away
    buffered: int  #: entries fetched and not handed out
    in_hand: int  #: entries handed out and not acknowledged; 0 without a group


class StreamLag(msgspec.Struct, frozen=True, kw_only=True):
    """How far behind a stream a consumer or its group is."""

    stream: str
    entries: int  #: not handed out yet: to this consumer, or to any of the group
    seconds: float  #: age of the oldest of these by the server's clock, 0 without one
    pending: int = 0  #: handed out by the group and not acknowledged
