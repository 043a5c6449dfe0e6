"""The account of a demo: what was sent, received, left out and indexed, and whether the sums agree. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from connector_sdk.cli.index import Added, IndexCounts
from connector_sdk.ledger import DropReason, Ledger

__all__ = ["Account", "Check", "GivenUp", "Outage", "Played"]


class Played(msgspec.Struct, frozen=True, kw_only=True):
    """What the server had to play; the other columns of the account must come to the same."""

    events: int
    actions: int
    summaries: int
    sessions: int
    requests: int | None = None  #: lines of the log that parse; None without a log, or when it was played in part
    lines: int | None = None  #: all lines of the log
    unparsed: int | None = None  #: lines of the log that do not parse
    blank: int | None = None  #: lines of the log with nothing on them


class GivenUp(msgspec.Struct, frozen=True, kw_only=True):
    """What the buffer told its `on_drop` hook, and what became of it."""

    told: int = 0
    events: int = 0  #: those that are not in the index: lost
    actions: int = 0  #: of these
    summaries: int = 0  #: of these
    stored: int = 0  #: events that are in the index all the same: the buffer could not know whether Redis had them


class Outage(msgspec.Struct, frozen=True, kw_only=True):
    """How Redis was killed, on the clock of the demo."""

    killed_at: float  #: seconds
    away: float  #: seconds until it ran again
    open_lease: int  #: events that were on lease at that moment


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Two numbers that must be equal, each counted by another party."""

    says: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        """Whether they are."""
        return self.left == self.right


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers, each from the one who counted it: the server, the client, the buffer, its store, the index."""

    played: Played
    connections: int  #: opened by the client
    sent: int  #: events that the server wrote completely, repeated ones each time
    distinct: int  #: different events that have happened on the server
    client: Ledger
    buffer: Ledger
    added: Added  #: as the index answered, summed over all batches
    index: IndexCounts  #: as counted in the database at the end
    known: int  #: events of the server's log whose ids are in the index
    place: str = "memory"  #: where the buffer is
    store_name: str = "Redis"  #: what to call the store
    store: Ledger | None = None  #: as the store counts, over all processes; None for a buffer in memory
    given_up: GivenUp = GivenUp()
    outage: Outage | None = None  #: None when Redis was not killed
    findings: Sequence[str] = ()  #: what is wrong with the configuration of Redis

    @property
    def cuts(self) -> int:
        """Connections that were lost: each but the last."""
        return max(0, self.connections - 1)

    @property
    def duplicates(self) -> int:
        """Events that came again and were left out by the client."""
        return self.client.dropped.get(DropReason.DUPLICATE, 0)

    @property
    def dropped(self) -> dict[str, int]:
        """Events given up, by who did and why; duplicates are no loss and not among them."""
        by_whom = {"client": self.client, "buffer": self.buffer, self.store_name: self.store or Ledger()}
        return {
            f"{who}: {why}": count
            for who, ledger in by_whom.items()
            for why, count in ledger.dropped.items()
            if why != DropReason.DUPLICATE
        }

    @property
    def taken_out(self) -> int:
        """Events that were acknowledged on leases."""
        return (self.store or self.buffer).delivered

    def checks(self) -> list[Check]:
        """Everything that must be equal for the account to balance."""
        client, buffer, played, lost = self.client, self.buffer, self.played, self.given_up
        found = [
            Check(says="the server played all it had", left=played.events, right=self.distinct),
            Check(says="every event came, once", left=self.distinct, right=client.received - self.duplicates),
            Check(says="the client's own sums", left=client.received, right=client.accounted),
            Check(says="nothing waits in the client", left=client.buffered + client.in_flight, right=0),
            Check(says="from client to buffer", left=client.delivered, right=buffer.received),
            Check(says="the buffer's own sums", left=buffer.received, right=buffer.accounted),
            Check(says="nothing waits in the buffer", left=buffer.buffered + buffer.in_flight, right=0),
            Check(says="every drop of the buffer was told", left=_losses(buffer), right=lost.told),
            *self._store_checks(),
            Check(
                says="events sent and in the index, or given up",
                left=self.distinct,
                right=self.index.events + lost.events,
            ),
            Check(
                says="events sent whose ids are in the index, or given up",
                left=self.distinct,
                right=self.known + lost.events,
            ),
            Check(
                says="actions sent and in the index, or given up",
                left=played.actions,
                right=self.index.actions + lost.actions,
            ),
            Check(
                says="summaries sent and in the index, or given up",
                left=played.summaries,
                right=self.index.summaries + lost.summaries,
            ),
        ]
        if played.requests is not None:
            found.append(
                Check(
                    says="requests of the log and in the index, or given up",
                    left=played.requests,
                    right=self.index.actions + lost.actions,
                )
            )
        return found

    def _store_checks(self) -> list[Check]:
        store, buffer = self.store, self.buffer
        if store is None:
            indexed = self.added.events + self.added.repeated
            return [Check(says="from buffer to index", left=buffer.delivered, right=indexed)]
        known_twice = buffer.dropped.get(DropReason.DUPLICATE, 0)
        return [
            Check(
                says=f"from buffer to {self.store_name}",
                left=buffer.delivered + known_twice + self.given_up.stored,
                right=store.received,
            ),
            Check(says=f"the sums of {self.store_name}", left=store.received, right=store.accounted),
            Check(says=f"nothing waits in {self.store_name}", left=store.buffered + store.in_flight, right=0),
            Check(says=f"nothing lost in {self.store_name}", left=_losses(store), right=0),
            # What came a second time was acknowledged once.
            Check(says=f"from {self.store_name} to index", left=store.delivered, right=self.added.events),
        ]

    @property
    def balances(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks())

    def to_dict(self) -> dict[str, object]:
        """The account as plain values for JSON, with the verdict."""
        return {
            "balances": self.balances,
            "cuts": self.cuts,
            "duplicates_removed": self.duplicates,
            "dropped": self.dropped,
            **{name: msgspec.to_builtins(getattr(self, name)) for name in self.__struct_fields__},
            "checks": [{**msgspec.structs.asdict(check), "holds": check.holds} for check in self.checks()],
        }


def _losses(ledger: Ledger) -> int:
    return ledger.dropped_total - ledger.dropped.get(DropReason.DUPLICATE, 0)
