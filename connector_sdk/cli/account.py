"""The account of a demo: what was sent, received, left out and indexed, and whether the sums agree. Pure."""

from __future__ import annotations

import msgspec

from connector_sdk.cli.index import Added, IndexCounts
from connector_sdk.ledger import DropReason, Ledger

__all__ = ["Account", "Check", "Played"]


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
    """The numbers, each from the one who counted it: the server, the client, the buffer, the index."""

    played: Played
    connections: int  #: opened by the client
    sent: int  #: events that the server wrote completely, repeated ones each time
    distinct: int  #: different events that have happened on the server
    client: Ledger
    buffer: Ledger
    added: Added  #: as the index answered, summed over all batches
    index: IndexCounts  #: as counted in the database at the end
    known: int  #: events of the server's log whose ids are in the index

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
        found = {f"client: {why}": count for why, count in self.client.dropped.items() if why != DropReason.DUPLICATE}
        return found | {f"buffer: {why}": count for why, count in self.buffer.dropped.items()}

    def checks(self) -> list[Check]:
        """Everything that must be equal for the account to balance."""
        client, buffer, played = self.client, self.buffer, self.played
        found = [
            Check(says="the server played all it had", left=played.events, right=self.distinct),
            Check(says="every event came, once", left=self.distinct, right=client.received - self.duplicates),
            Check(says="the client's own sums", left=client.received, right=client.accounted),
            Check(says="nothing waits in the client", left=client.buffered + client.in_flight, right=0),
            Check(says="from client to buffer", left=client.delivered, right=buffer.received),
            Check(says="the buffer's own sums", left=buffer.received, right=buffer.accounted),
            Check(says="nothing waits in the buffer", left=buffer.buffered + buffer.in_flight, right=0),
            Check(says="from buffer to index", left=buffer.delivered, right=self.added.events + self.added.repeated),
            Check(says="events sent and in the index", left=self.distinct, right=self.index.events),
            Check(says="events sent whose ids are in the index", left=self.distinct, right=self.known),
            Check(says="actions sent and in the index", left=played.actions, right=self.index.actions),
            Check(says="summaries sent and in the index", left=played.summaries, right=self.index.summaries),
        ]
        if played.requests is not None:
            found.append(
                Check(says="requests of the log and in the index", left=played.requests, right=self.index.actions)
            )
        return found

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
