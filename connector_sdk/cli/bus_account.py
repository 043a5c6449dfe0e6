"""The account of a demo of the bus: what was published, and what became of it with everyone who reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from connector_sdk.cli.account import Check

__all__ = ["BusAccount", "DeadLetterSeen", "GroupAccount", "Worker"]


class Worker(msgspec.Struct, frozen=True, kw_only=True):
    """One member of a group."""

    name: str
    handled: int
    was_killed: bool = False


class GroupAccount(msgspec.Struct, frozen=True, kw_only=True):
    """One group: each event goes to one of its members."""

    name: str
    workers: Sequence[Worker]
    handled: int  #: different events, by their ids, as the members wrote them down
    again: int  #: events that were handled a second time, because who had them died before the acknowledgement
    pending: int  #: not finished, as the log counts
    lag: int  #: not delivered, as the log counts


class DeadLetterSeen(msgspec.Struct, frozen=True, kw_only=True):
    """The poison event among the dead letters."""

    id: str
    group: str
    event_id: str
    error: str
    attempts: int
    was_redriven: bool


class BusAccount(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers, each from the one who counted it: publisher, readers, log."""

    place: str
    sent: int  #: different events that happened on the server
    published: int  #: as the publisher counts
    kept: int  #: entries of the topic, as the log counts
    watched: int  #: different events that the subscriber without a group saw
    watched_again: int
    groups: Sequence[GroupAccount]
    letters: Sequence[DeadLetterSeen]
    letters_left: int
    lost: int  #: what the bus told as lost

    def checks(self) -> list[Check]:
        """Everything that must be equal for the account to balance."""
        found = [
            Check(says="every event of the server was published", left=self.sent, right=self.published),
            Check(says="the log has every event", left=self.published, right=self.kept),
            Check(says="the subscriber saw every event", left=self.published, right=self.watched),
            Check(says="and none twice", left=self.watched_again, right=0),
        ]
        for group in self.groups:
            found += [
                Check(says=f"group {group.name} handled every event", left=self.published, right=group.handled),
                Check(says=f"nothing waits in group {group.name}", left=group.pending + group.lag, right=0),
            ]
        redriven = sum(letter.was_redriven for letter in self.letters)
        return [
            *found,
            Check(says="one event was poison", left=len(self.letters), right=1),
            Check(says="it was redriven", left=redriven, right=len(self.letters)),
            Check(says="no dead letter is left", left=self.letters_left, right=0),
            Check(says="nothing was lost", left=self.lost, right=0),
        ]

    @property
    def balances(self) -> bool:
        """Whether every check holds."""
        return all(check.holds for check in self.checks())

    def to_dict(self) -> dict[str, object]:
        """The account as plain values for JSON, with the verdict."""
        checks = [{**msgspec.structs.asdict(check), "holds": check.holds} for check in self.checks()]
        return {"balances": self.balances, **msgspec.to_builtins(self), "checks": checks}
