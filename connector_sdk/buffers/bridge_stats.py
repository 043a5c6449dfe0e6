"""What an OutageBridge tells of itself: a frozen reading, JSON-ready, and the counts that it is made of."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

from connector_sdk.buffers.durable_stats import DurableStats
from connector_sdk.ledger import DropReason, Ledger

__all__ = ["Books", "BridgeState", "BridgeStats"]


class BridgeState(enum.StrEnum):
    """Where the events go that are added to an `OutageBridge`."""

    REMOTE = "remote"  #: to the remote buffer
    LOCAL = "local"  #: to the local one, for the remote is away
    RETURNING = "returning"  #: to the local one, while those before them are written back


class BridgeStats(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of an `OutageBridge`; `msgspec.json.encode(stats)` makes JSON of it."""

    #: this process: delivered to the remote, buffered (waits here, or in the local buffer), in flight, dropped. What the
    #: local buffer held at the start counts as received
    ledger: Ledger
    state: BridgeState  #: where events go now
    outages: int  #: how often events began to go to the local buffer
    carried: int  #: events found in the local buffer: from an earlier process, or stored there without an answer
    spilled: int  #: events stored in the local buffer
    returned: int  #: events written back to the remote
    duplicates: int  #: of those returned, the events whose id the remote knew
    in_doubt: (
        int  #: events sent to the remote without an answer, and then stored locally: without an id they may be twice
    )
    local_size: (
        int | None
    )  #: events in the local buffer now, as it says itself, on lease included; None if it does not say
    remote: DurableStats  #: what the remote tells
    hook_errors: int  #: calls of `on_drop` that raised
    observer_errors: int  #: observer methods that raised
    closed: bool  #: `aclose()` was called


class Books(msgspec.Struct):
    """The counts of a bridge in one process."""

    outages: int = 0
    carried: int = 0
    spilled: int = 0
    returned: int = 0
    duplicates: int = 0
    in_doubt: int = 0
    leased: int = 0  #: events of the local buffer that are on their way back
    unsure: int = 0  #: events written back whose acknowledgement had no answer: they are gone, or come again
    lost: int = 0  #: events that the local buffer had, and had no more when it was empty
    looked: bool = False  #: what was there before is in `carried`
    dropped_before: Mapping[DropReason, int] = {}  #: what the local buffer had dropped when it was first looked at
    dropped_locally: Mapping[DropReason, int] = {}  #: what it has dropped since, as last told
    local_size: int | None = None  #: as last told

    def told(self, waiting: int, on_lease: int, dropped: Mapping[DropReason, int]) -> None:
        """Note what the local buffer says of itself."""
        self.local_size = waiting + on_lease
        if not self.looked:
            self.looked = True
            self.dropped_before = dropped
            self.carried = max(0, self.local_size - (self.spilled - self.returned))
        since = {reason: count - self.dropped_before.get(reason, 0) for reason, count in dropped.items()}
        self.dropped_locally = {reason: count for reason, count in since.items() if count > 0}

    @property
    def expected(self) -> int:
        """How many events the local buffer holds, by this account."""
        return self.carried + self.spilled - self.returned - sum(self.dropped_locally.values()) - self.lost

    def found_empty(self) -> None:
        """Put the account right when the local buffer is empty: steps without an answer may have been done."""
        missing = self.expected
        gone = min(max(missing, 0), self.unsure)
        self.returned += gone
        self.unsure = 0
        self.lost += max(missing - gone, 0)
        self.carried -= min(missing, 0)

    def ledger(self, adding: Ledger, refused: Mapping[DropReason, int]) -> Ledger:
        """
        Return the account of the bridge; *adding* is that of the way in, *refused* what no buffer took.

        For the way in, what was stored locally or refused is delivered.
        """
        dropped: dict[DropReason, int] = {}
        for part in (adding.dropped, refused, self.dropped_locally):
            for reason, count in part.items():
                dropped[reason] = dropped.get(reason, 0) + count
        if self.lost:
            dropped[DropReason.LOST] = dropped.get(DropReason.LOST, 0) + self.lost
        waiting = self.expected - self.leased
        # Below 0 when an event was on its way back before the way in was told that it is stored.
        early = min(0, waiting)
        return Ledger(
            received=adding.received + self.carried,
            delivered=adding.delivered - self.spilled - sum(refused.values()) + self.returned,
            buffered=adding.buffered + waiting - early,
            in_flight=adding.in_flight + self.leased + early,
            dropped=dropped,
        )
