"""The dead letters of a bus: list, look at, redrive, purge."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Self, TypeAlias

import msgspec

from connector_sdk.bus.delivery import DeliveryEvidence
from connector_sdk.bus.events import Event, decode
from connector_sdk.bus.log import START, EventLog, StoredLetter
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.bus.topics import check_topic
from connector_sdk.errors import PayloadError
from connector_sdk.options import check_integer

__all__ = ["DeadLetter", "DeadLetters", "RedriveReport"]

_PAGE: Final = 100
_Ids: TypeAlias = list[str]  # the class below has a method of that name


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """An event that was given up, and why."""

    id: str  #: names it within the bus's storage
    topic: str
    group: str | None  #: whose handler failed, None for a subscription without a group
    position: str  #: where the event was in its topic
    event: Event | None  #: None when the entry is no event: see `body`
    body: bytes  #: the entry as the log has it; empty in a log that keeps objects
    evidence: DeliveryEvidence  #: the attempts with time, consumer and error, and the reason
    buried_at: float  #: Unix seconds


_Letters: TypeAlias = list[DeadLetter]


class RedriveReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a redrive did, or with `dry_run` would do."""

    checked: int = 0  #: dead letters that were looked at
    redriven: int = 0  #: of these, those that are delivered again
    gone: int = 0  #: of these, those that somebody else redrove or purged meanwhile
    dry_run: bool = False
    ids: Sequence[str] = ()  #: those that were, or would be, redriven


class DeadLetters:
    """
    The dead letters of a bus's storage, of all groups and processes. Made by the bus, as `bus.dead_letters`.

    Each step on one letter is atomic: two processes that redrive the same one deliver it once. Every method raises
    BusUnavailableError when the storage is away and BusClosedError when the bus is not open.
    """

    def __init__(self, log: EventLog, registry: EventRegistry, check_open: Callable[[], None]) -> None:
        self._log = log
        self._registry = registry
        self._check_open = check_open

    async def list(self, topic: str | None = None, *, limit: int = 100) -> _Letters:
        """Return up to *limit* (1 or more) dead letters of *topic*, or of all; oldest first within a topic."""
        check_integer("limit", limit, minimum=1)
        found: _Letters = []
        async for letter in self.iterate(topic):
            found.append(letter)
            if len(found) >= limit:
                break
        return found

    def iterate(self, topic: str | None = None) -> AsyncIterator[DeadLetter]:
        """Go through all dead letters of *topic*, or of all; in pages, so their number does not matter."""
        self._check_open()
        if topic is not None:
            check_topic(topic)
        return _Pages(self._log, topic, self._letter)

    async def get(self, letter: str) -> DeadLetter | None:
        """Return one dead letter, None when there is none of that id."""
        self._check_open()
        stored = await self._log.dead_letter(letter)
        return None if stored is None else self._letter(stored)

    async def redrive(
        self,
        letter: str | None = None,
        *,
        topic: str | None = None,
        where: Callable[[DeadLetter], bool] | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> RedriveReport:
        """
        Let dead letters be handled again: one by its id, or those of *topic* that *where* says yes to, up to *limit*.

        One of a group goes to that group alone, as a first attempt that keeps its evidence; one without a group is
        published anew.
        With *dry_run* nothing happens, and the report says what would.
        """
        wanted = await self._choose(letter, topic, where, limit)
        checked, letters = wanted
        if dry_run:
            return RedriveReport(checked=checked, redriven=len(letters), dry_run=True, ids=letters)
        redriven = [one for one in letters if await self._log.redrive(one)]
        return RedriveReport(checked=checked, redriven=len(redriven), gone=len(letters) - len(redriven), ids=redriven)

    async def purge(
        self,
        letter: str | None = None,
        *,
        topic: str | None = None,
        where: Callable[[DeadLetter], bool] | None = None,
        limit: int | None = None,
    ) -> int:
        """Discard dead letters for good, chosen as by `redrive`; return how many."""
        _, letters = await self._choose(letter, topic, where, limit)
        return sum([await self._log.purge(letters[i : i + _PAGE]) for i in range(0, len(letters), _PAGE)])

    async def _choose(
        self, letter: str | None, topic: str | None, where: Callable[[DeadLetter], bool] | None, limit: int | None
    ) -> tuple[int, _Ids]:
        self._check_open()
        if limit is not None:
            check_integer("limit", limit, minimum=1)
        if letter is not None:
            found = await self.get(letter)
            if found is None:
                return 0, []
            return 1, [letter] if where is None or where(found) else []
        checked = 0
        letters: _Ids = []
        # All are chosen before the first is touched: one that fails again while we go on must not be met twice.
        async for one in self.iterate(topic):
            checked += 1
            if where is None or where(one):
                letters.append(one.id)
                if limit is not None and len(letters) >= limit:
                    break
        return checked, letters

    def _letter(self, stored: StoredLetter) -> DeadLetter:
        body = stored.body
        event: Event | None
        if isinstance(body, bytes):
            try:
                event = decode(body, stored.topic, self._registry)
            except PayloadError:
                event = None
        else:
            event, body = body.bound(stored.topic, self._registry), b""
        return DeadLetter(
            id=stored.id,
            topic=stored.topic,
            group=stored.group,
            position=stored.position,
            event=event,
            body=body,
            evidence=DeliveryEvidence.decode(stored.evidence),
            buried_at=stored.buried_at,
        )


class _Pages:
    """An iterator and no generator: a loop that is left early leaves nothing behind that has to be closed."""

    def __init__(self, log: EventLog, topic: str | None, read: Callable[[StoredLetter], DeadLetter]) -> None:
        self._log = log
        self._topic = topic
        self._read = read
        self._page: deque[StoredLetter] = deque()
        self._cursor: str | None = START

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DeadLetter:
        while not self._page:
            if self._cursor is None:
                raise StopAsyncIteration
            page, cursor = await self._log.dead_letters(self._topic, _PAGE, cursor=self._cursor)
            self._page.extend(page)
            self._cursor = cursor or None
        return self._read(self._page.popleft())
