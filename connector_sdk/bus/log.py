"""
What a storage engine for the bus implements: the few methods under an `EventBus`, which does everything else.

A log keeps the events of *topics* in order, hands them to everyone who reads, and remembers for each *group* what its
members have finished. It decides nothing about handlers, retries, patterns or payloads: it does one step, completely or not
at all, or raises. `connector_sdk.testing.EventLogContract` is the test suite that a log must pass.

A *position* names an entry within its topic: an opaque string, later ones are later (`EventLog.order`). A position that
no entry has (START; the end of a topic) stands between entries.

Methods that talk to the storage raise `BusUnavailableError` when it cannot be reached, gives no answer in time, or
refuses; `in_doubt` says whether the step may have been done all the same. A cancelled call is like one in doubt, and the
log stays usable. Methods are called from one event loop; calls may overlap unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from connector_sdk.bus.events import Event

__all__ = [
    "START",
    "Body",
    "Claim",
    "Delivery",
    "EventLog",
    "GroupInfo",
    "LogMember",
    "Loss",
    "Reading",
    "Record",
    "Reserved",
    "StoredLetter",
    "TopicInfo",
]

#: Before the first entry of any topic.
START = ""
#: What is stored of an event: bytes, or the event itself in a log that `keeps_objects`.
Body: TypeAlias = "bytes | Event"
#: What became of a wish for a key: the caller has it now, its work is done, or another has it.
Reserved: TypeAlias = Literal["yours", "done", "taken"]


class Record(msgspec.Struct, frozen=True, gc=False):
    """One entry of a topic."""

    topic: str
    position: str
    body: Body


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a reader or a group should have had and that the log has no more. Never silent: see `EventBus.stats`."""

    topic: str
    reason: str  #: "trimmed": retention took it; "lost": the storage came back without it
    count: int | None = None  #: how many entries, None when nobody can tell
    group: str | None = None  #: whose it was, None for a reader


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What a read found."""

    records: Sequence[Record] = ()  #: in order within each topic
    topics: Sequence[str] = ()  #: topics that were created since the last reading, each to be read from START
    catalogue: str = START  #: where to go on with the catalogue of topics
    cursors: Mapping[str, str] = {}  #: topics whose cursor is to be replaced: the storage lost them and they began anew
    losses: Sequence[Loss] = ()


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One entry that a member of a group is to handle."""

    topic: str
    position: str
    body: Body
    attempt: int = 1  #: 1 at the first delivery; entries given back unstarted do not count
    notes: bytes = b""  #: what `LogMember.postpone` was given last: opaque to the log
    origin: str = ""  #: where the log has it, if `topic` and `position` do not say: opaque


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a member got."""

    deliveries: Sequence[Delivery] = ()  #: those that come again first, then new ones, in order within each topic
    checked: int = 0  #: entries of dead members that were looked at
    recovered: int = 0  #: of these, those that are among *deliveries* now
    losses: Sequence[Loss] = ()


class GroupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a topic."""

    name: str
    consumers: int  #: members that live
    pending: int  #: delivered and not finished, those that wait for another attempt included
    lag: int | None  #: entries that no member was given yet; None when the storage cannot tell
    last_delivered: str = START
    oldest_pending_age: float | None = None  #: seconds since the oldest pending entry was published, None without one


class TopicInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One consistent reading of a topic, as far as the storage can give one."""

    topic: str
    length: int = 0
    first: str | None = None  #: position of the first entry that is kept
    last: str | None = None
    oldest_age: float | None = None  #: seconds since the first entry was published, None without one
    groups: Sequence[GroupInfo] = ()
    dead_letters: int = 0


class StoredLetter(msgspec.Struct, frozen=True, gc=False):
    """A dead letter as a log keeps it."""

    id: str  #: names it within the log, for good
    topic: str
    group: str | None  #: whose handler failed; None for a subscription without a group
    position: str  #: what the entry was in its topic
    body: Body
    evidence: bytes  #: opaque to the log
    buried_at: float  #: Unix seconds of the storage's clock


class LogMember(Protocol):
    """
    One consumer of one group, over any number of topics. Made by `EventLog.member`; belongs to one process.

    While it lives (its process renews it by `beat`, and each `claim` does as well) nobody else gets what it was given. `hold`
    seconds after the last sign of life other members take its entries over, and its name is forgotten in the same step.
    """

    async def follow(self, topic: str, start: str | datetime) -> bool:
        """
        Take part in the group of *topic*, which is made at *start* if it is not there; return whether it was made.

        *start*: a position, START, or a time; entries after it are delivered. The topic is made as well, empty, if need be.
        Once a group exists *start* means nothing. May be called while `claim` waits; the topic counts from then on.
        """

    async def claim(self, limit: int, *, wait: float) -> Claim:
        """
        Take up to *limit* (1 or more) entries: due ones that come again, then what dead members had, then new ones.

        Waits up to *wait* seconds for the first; may return an empty claim earlier. Called by one task at a time. Nothing is
        ever lost on the way: entries whose reply did not arrive, or whose claim was cancelled, are given at the next call.
        A group or topic that the storage lost is made anew at START of what is there now, and told as a loss.
        """

    async def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """These are finished. One request for all of them; naming one twice harms nothing."""

    async def postpone(self, delivery: Delivery, delay: float, notes: bytes) -> None:
        """
        Let the entry come again to any member, *delay* seconds (0 or more) from now or later.

        It has *notes* then, and one more attempt. It outlives this member, and blocks no other entry.
        """

    async def bury(self, delivery: Delivery, evidence: bytes) -> str:
        """Move the entry to the dead letters in one atomic step, finished for this group; return the letter's id."""

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Let entries that were not begun go to any member at once; the attempt does not count."""

    async def beat(self) -> None:
        """Say that this member lives. The bus calls it every `hold` / 3."""

    async def recover(self, limit: int, idle: float) -> Claim:
        """Take over now what members had that gave no sign of life for *idle* seconds (0 or more), up to *limit* entries."""

    async def aclose(self) -> None:
        """Leave the group: what is not finished goes to the others at once, or without an answer in time after `hold`."""


class EventLog(Protocol):
    """
    A storage engine for the bus. Any number of processes use the same storage at once.

    Constructors do no I/O. Retention (`max_events` and `ttl_seconds` of a topic) belongs to the log: beyond these it lets the
    oldest go, in steps of its own, but nothing that a group has not finished, unless the topic then has more than the hard
    bound `max_backlog` of entries or seconds; such a loss is counted and told to the group (`Claim.losses`), and to a reader
    that was slower than retention (`Reading.losses`).
    """

    @property
    def name(self) -> str:
        """What to call it in messages and metrics: kind and place, no secrets."""

    @property
    def keeps_objects(self) -> bool:
        """Whether bodies are the events themselves instead of bytes: in a log that never leaves the process."""

    async def connect(self) -> None:
        """Reach and prepare the storage. Raises ConfigurationError for what waiting cannot mend, else BusUnavailableError."""

    async def append(self, entries: Sequence[tuple[str, Body]]) -> list[str]:
        """
        Store (topic, body) entries in this order and return their positions. Topics are made as needed.

        Entries of one topic that come from calls one after the other are stored in that order. When it fails, a leading
        part may be stored if the error is in doubt, else nothing is.
        """

    async def read(
        self, cursors: Mapping[str, str], *, catalogue: str | None = None, limit: int = 1000, wait: float = 0.0
    ) -> Reading:
        """
        Return up to *limit* entries after the cursor of each topic, for readers without a group.

        With *catalogue* (START: from now on) also topics that are created; see `Reading`. Waits up to *wait* seconds if
        there is nothing; may return empty earlier. No entries with *wait* 0 means that there are none, whatever else is
        told. May be cancelled at any time, and called by several tasks at once.
        """

    async def topics(self) -> tuple[list[str], str]:
        """Return all topics that exist, sorted, and the catalogue's cursor: none is missed between both."""

    async def end(self, topic: str) -> str:
        """Return the position of the newest entry that *topic* ever had, START for none."""

    async def position_at(self, topic: str, time: datetime) -> str:
        """Return a position so that the entries after it are those stored at *time* or later."""

    def order(self, position: str) -> tuple[int, ...]:
        """Return what positions of one topic sort by."""

    def member(self, group: str, consumer: str, *, hold: float) -> LogMember:
        """Return a member named *consumer* (unique) that counts as dead *hold* seconds after its last sign of life. No I/O."""

    async def bury(self, topic: str, position: str, body: Body, evidence: bytes) -> str:
        """Add a dead letter for a subscription without a group; return its id."""

    async def dead_letters(
        self, topic: str | None, limit: int, *, cursor: str = START
    ) -> tuple[list[StoredLetter], str]:
        """Return up to *limit* dead letters of *topic* (None: all), oldest first, and where to go on ("": no more)."""

    async def dead_letter(self, letter: str) -> StoredLetter | None:
        """Return one dead letter, None when there is none of that id."""

    async def redrive(self, letter: str) -> bool:
        """
        Let a dead letter be delivered again, in one atomic step; False when there is none of that id.

        One of a group comes to that group alone, first attempt, its evidence as notes, whether or not retention kept the
        entry. One without a group is published anew to its topic.
        """

    async def purge(self, letters: Sequence[str]) -> int:
        """Discard dead letters for good; return how many there were."""

    async def reserve(self, key: str, holder: str, hold: float) -> Reserved:
        """
        Give *key* to *holder* for *hold* seconds of the storage's clock, if nobody has it and it is not done.

        One step: of any number of callers one gets it. Who has it already renews it so. *key* is any text of 1 to 512
        characters; keys have nothing to do with topics.
        """

    async def keep(self, key: str, holder: str, ttl: float) -> bool:
        """
        Mark *key* as done for *ttl* seconds; False, and nothing is changed, when another has it or has marked it.

        A holder whose time ran out may mark it as long as nobody else came. Doing it twice harms nothing.
        """

    async def free(self, key: str, holder: str) -> None:
        """Let others have *key* at once, if *holder* has it and has not marked it as done; else nothing happens."""

    async def info(self, topic: str) -> TopicInfo | None:
        """Return what is known of *topic*, None when it does not exist. Cheap enough for once a second."""

    async def ping(self) -> None:
        """Return when the storage answers; raise BusUnavailableError else."""

    async def aclose(self) -> None:
        """Release connections. May be called twice."""
