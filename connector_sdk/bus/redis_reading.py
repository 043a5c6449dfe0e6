"""Reading a RedisLog without a group, and finding out what a reader missed."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from connector_sdk.bus.log import START, Loss, Reading, Record
from connector_sdk.bus.redis_storage import Storage, told_as_bus_errors
from connector_sdk.errors import BusClosedError
from connector_sdk.redis_client import Reply
from connector_sdk.streams.reader import StreamReader

__all__ = ["NOTHING", "TopicReader", "order_of", "texts_of"]

#: The position in Redis that stands before every entry.
NOTHING: Final = "0-0"
#: A reader whose last reading is that recent, in seconds, and that now got fewer entries than this, has missed nothing:
#: retention takes neither what is younger nor what is among the newest ones.
_RECENT: Final = 2.0
_FEW: Final = 10
#: Topics that are remembered to have begun anew.
_MOST_BEGUN: Final = 10_000
#: Readings that are remembered.
_MEMORY: Final = 16
#: Seconds that one reading waits at most, so that what is to be looked at from time to time is.
_LONGEST_WAIT: Final = 5.0
#: After so many new topics at once the catalogue may have had more than it keeps.
_MANY_TOPICS: Final = 1000


def order_of(position: str) -> tuple[int, int]:
    """Return what positions sort by."""
    ms, _, sequence = (position or NOTHING).partition("-")
    return int(ms), int(sequence)


def _before(ms: int) -> str:
    """Return the last position before a time."""
    return f"{ms - 1}-{2**64 - 1}" if ms > 0 else START


def texts_of(reply: Reply) -> list[str]:
    """Return a reply that is an array of strings."""
    assert isinstance(reply, list)
    return [word.decode() for word in reply if isinstance(word, bytes)]


@dataclass(frozen=True, slots=True)
class _Facts:
    """What check.lua says of a topic."""

    last: str  #: "" without a stream
    born: str
    trimmed: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """What check.lua says of all."""

    since: str
    catalogue: str
    topics: Mapping[str, _Facts]


class TopicReader:
    """
    Reads entries of topics and the catalogue.

    A loss is found when a reader gets entries though something before them is gone: the storage notes what retention took last
    of each topic, when its stream began, and when all began. It is asked only if that can be: not by a reader that
    reads one reading after the other and gets a few entries each time.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keys = storage.keys
        self._reader = StreamReader(
            storage.client.address,
            connect_timeout=storage.connect_timeout,
            response_timeout=storage.response_timeout,
            client_name="connector_sdk bus reader",
        )
        #: When a reading ended, and where each of its readers then was.
        self._readings: deque[tuple[float, Mapping[str, str]]] = deque(maxlen=_MEMORY)
        #: Topics that began anew while this log was open: the id of the announcement.
        self._begun: dict[str, str] = {}
        #: When the storage began, as this log saw it first.
        self._since: str | None = None
        self._seen = ""
        self._look_at = 0.0
        self._is_closed = False

    async def aclose(self) -> None:
        """Close the connections; readings under way fail."""
        self._is_closed = True
        await self._reader.aclose()

    async def topics(self) -> tuple[list[str], str]:
        """Return the topics that exist, and the cursor of the catalogue."""
        script = self._storage.scripts.topics
        cursor, *topics = texts_of(await self._storage.run(script, (self._keys.topics,), ()))
        return sorted(topics), cursor

    async def end(self, topic: str) -> str:
        """See `EventLog.end`."""
        last = (await self._check((topic,))).topics[topic].last
        return START if last in ("", NOTHING) else last

    async def position_at(self, topic: str, moment: datetime) -> str:
        """See `EventLog.position_at`."""
        ms = math.floor(moment.timestamp() * 1000)
        facts = (await self._check((topic,))).topics[topic]
        if not facts.last and moment.timestamp() <= time.time():
            return START
        # Not before all that is there: what went earlier is no loss of a reader who begins now.
        return max(_before(ms), facts.trimmed, facts.born, key=order_of)

    async def read(self, cursors: Mapping[str, str], catalogue: str | None, limit: int, wait: float) -> Reading:
        """See `EventLog.read`."""
        if self._is_closed:
            raise BusClosedError("the log was closed")
        started = time.monotonic()
        seen = catalogue if catalogue else (self._seen if catalogue is None else "")
        lost = False
        if not seen or started >= self._look_at:
            facts = await self._check(())
            self._look_at = started + _LONGEST_WAIT
            # Ids that go back: this is another storage, or an older one, and the clock is behind.
            lost = bool(seen) and order_of(facts.catalogue) < order_of(seen)
            seen = facts.catalogue if lost or not seen else seen
        if lost:
            wait = 0.0
        records, created, seen = await self._read(cursors, seen, limit, min(wait, _LONGEST_WAIT))
        recently = started - _RECENT
        suspects = self._suspects(cursors, records, created, recently)
        if lost:
            suspects |= {topic for topic, cursor in cursors.items() if cursor}
        losses: list[Loss] = []
        moved: dict[str, str] = {}
        if suspects:
            present = {topic for topic in suspects if self._was_there(topic, cursors[topic], recently)}
            losses, moved = await self._missed({topic: cursors[topic] for topic in suspects}, records, present)
        if lost or len(created) >= _MANY_TOPICS:
            created, seen = await self.topics()
        self._seen = seen
        ends = {topic: part[-1].position for topic, part in records.items()}
        self._readings.append((time.monotonic(), {**cursors, **ends}))
        return Reading(
            records=[record for part in records.values() for record in part],
            topics=[] if catalogue is None else created,
            catalogue=START if catalogue is None else seen,
            cursors=moved,
            losses=losses,
        )

    async def _read(
        self, cursors: Mapping[str, str], seen: str, limit: int, wait: float
    ) -> tuple[dict[str, list[Record]], list[str], str]:
        """Return entries by topic, topics that began, and how far in the catalogue that is."""
        place = self._keys.topic
        ids = {self._keys.catalogue: seen.encode()}
        for topic, cursor in cursors.items():
            ids[place(topic)] = cursor.encode() if cursor else b"0"
        records: dict[str, list[Record]] = {}
        created: dict[str, None] = {}
        while True:
            with told_as_bus_errors():
                found = await self._reader.read(ids, limit, wait)
            announced = 0
            for stream, entries in found:
                if stream == self._keys.catalogue:
                    for entry_id, fields in entries:
                        topic = fields[1].decode()
                        created[topic] = None
                        self._note_beginning(topic, entry_id.decode())
                    seen = entries[-1][0].decode()
                    announced = len(entries)
                else:
                    topic = self._keys.name_of(stream)
                    records[topic] = [Record(topic, entry_id.decode(), fields[1]) for entry_id, fields in entries]
            if records or announced < limit:
                return records, list(created), seen
            # They left no room for entries: an answer without any would say that there are none.
            ids[self._keys.catalogue], wait = seen.encode(), 0.0

    def _note_beginning(self, topic: str, announcement: str) -> None:
        self._begun[topic] = announcement
        if len(self._begun) > _MOST_BEGUN:
            del self._begun[next(iter(self._begun))]

    # -- what was missed

    def _suspects(
        self,
        cursors: Mapping[str, str],
        records: Mapping[str, Sequence[Record]],
        created: Iterable[str],
        recently: float,
    ) -> set[str]:
        """Return topics of which the reader may have missed something, unless it read *recently* and got a few entries now."""
        suspects = {topic for topic in created if cursors.get(topic)}
        for topic, part in records.items():
            cursor = cursors[topic]
            if not cursor:
                continue  # it starts with what there is
            begun = self._begun.get(topic)
            if (
                len(part) >= _FEW
                or (begun is not None and order_of(cursor) <= order_of(begun))
                or not self._was_there(topic, cursor, recently)
            ):
                suspects.add(topic)
        return suspects

    def _was_there(self, topic: str, cursor: str, since: float) -> bool:
        """Whether some reading after *since*, a monotonic time, ended there."""
        for ended, ends in reversed(self._readings):
            if ended <= since:
                return False
            if ends.get(topic) == cursor:
                return True
        return False

    async def _missed(
        self, cursors: Mapping[str, str], records: Mapping[str, Sequence[Record]], present: Collection[str]
    ) -> tuple[list[Loss], dict[str, str]]:
        """
        Return what was lost between *cursors* and *records*, and the cursors that are of no use any more.

        *present*: topics whose reader was there a moment ago: if the stream expired since, it had all of it.
        """
        losses: list[Loss] = []
        moved: dict[str, str] = {}
        storage = await self._check(cursors)
        for topic, cursor in cursors.items():
            facts, place = storage.topics[topic], order_of(cursor)
            if not facts.last:
                continue
            if order_of(facts.last) < place:
                # An older state of the same storage has what the reader had; another one has nothing of it.
                moved[topic] = facts.last if storage.since == self._since else START
                losses.append(Loss(topic=topic, reason="lost"))
            elif topic not in records:
                continue
            elif storage.since and int(storage.since) > place[0] and place < order_of(facts.born):
                losses.append(Loss(topic=topic, reason="lost"))
            elif order_of(facts.trimmed) > place or (order_of(facts.born) > place and topic not in present):
                losses.append(Loss(topic=topic, reason="trimmed"))
        return losses, moved

    async def _check(self, topics: Iterable[str]) -> _Storage:
        names = list(topics)
        keys = [self._keys.topic(name) for name in names]
        reply = await self._storage.run(self._storage.scripts.check, keys, names)
        since, catalogue, *rest = texts_of(reply)
        if self._since is None:
            self._since = since
        facts = {name: _Facts(*rest[3 * index : 3 * index + 3]) for index, name in enumerate(names)}
        return _Storage(since, catalogue, facts)
