"""The dead letters of a RedisLog: a stream for each topic."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Final

from connector_sdk.bus.log import START, StoredLetter
from connector_sdk.bus.redis_reading import order_of, texts_of
from connector_sdk.bus.redis_retention import Places
from connector_sdk.bus.redis_storage import Storage, milliseconds
from connector_sdk.redis_client import Argument, Reply

__all__ = ["RedisLetters"]

#: Letters of one request: they may be large.
_PAGE: Final = 100


class RedisLetters:
    """Keeps them, `most` of each topic and each for `seconds`. The id of a letter is that of its entry, and its topic."""

    def __init__(self, storage: Storage, places: Places, most: int, seconds: float) -> None:
        self._storage = storage
        self._keys = storage.keys
        self._places = places
        self._most = most
        self._lifetime = milliseconds(seconds)

    async def bury(
        self,
        topic: str,
        position: str,
        body: bytes,
        evidence: bytes,
        *,
        keys: Sequence[bytes] = (),
        whose: Sequence[Argument] = (),
        repeatable: bool = False,
    ) -> str:
        """Run bury.lua; *keys* and *whose* are what it wants for a group."""
        reply = await self._storage.run(
            self._storage.scripts.bury,
            (self._keys.dead(topic), self._keys.buried, *keys),
            (topic, position, body, evidence, self._most, self._lifetime, *whose),
            repeatable=repeatable,
        )
        assert isinstance(reply, bytes)
        return _name(reply, topic)

    async def page(self, topic: str | None, limit: int, cursor: str) -> tuple[list[StoredLetter], str]:
        """Return letters after *cursor*, topic by topic, and where to go on."""
        after, current = _entry_of(cursor) if cursor else ("", "")
        if topic is not None:
            topics: Iterable[str] = (topic,)
        else:
            known = texts_of(await self._storage.call("ZRANGE", self._keys.buried, 0, -1))
            topics = sorted(name for name in known if name >= current)
        found: list[StoredLetter] = []
        for name in topics:
            start = f"({after}" if after and name == current else "-"
            while len(found) <= limit:
                count = min(_PAGE, limit + 1 - len(found))
                reply = await self._storage.call("XRANGE", self._keys.dead(name), start, "+", "COUNT", count)
                letters = _letters(reply, name)
                found += letters
                if len(letters) < count:
                    break
                start = f"({_entry_of(letters[-1].id)[0]}"
            if len(found) > limit:
                return found[:limit], found[limit - 1].id
        return found, START

    async def get(self, letter: str) -> StoredLetter | None:
        """Return a letter, None when there is none of that id."""
        entry, topic = _entry_of(letter)
        if not entry:
            return None
        return next(
            iter(_letters(await self._storage.call("XRANGE", self._keys.dead(topic), entry, entry), topic)), None
        )

    async def redrive(self, letter: str) -> bool:
        """Run redrive.lua."""
        entry, topic = _entry_of(letter)
        if not entry:
            return False
        place = self._places[topic]
        rules = place.retention
        reply = await self._storage.run(
            self._storage.scripts.redrive,
            (self._keys.dead(topic), place.key, self._keys.again),
            (topic, entry, rules.lifetime, rules.group_lifetime),
            repeatable=False,
        )
        return reply == 1

    async def purge(self, letters: Sequence[str]) -> int:
        """Discard letters; return how many there were."""
        named = sorted({(topic, entry) for entry, topic in map(_entry_of, letters) if entry})
        count = 0
        for topic, group in itertools.groupby(named, key=lambda one: one[0]):
            reply = await self._storage.call("XDEL", self._keys.dead(topic), *(entry for _, entry in group))
            assert isinstance(reply, int)
            count += reply
        return count


def _name(entry: bytes, topic: str) -> str:
    return f"{entry.decode()}:{topic}"


def _entry_of(letter: str) -> tuple[str, str]:
    """Return the entry and the topic of a letter; both are "" if that is no id of one."""
    entry, separator, topic = letter.partition(":")
    ms, dash, sequence = entry.partition("-")
    good = separator and dash and all(part.isascii() and part.isdigit() and len(part) < 20 for part in (ms, sequence))
    return (entry, topic) if good else ("", "")


def _letters(reply: Reply, topic: str) -> list[StoredLetter]:
    assert isinstance(reply, list)
    return [_letter(entry, topic) for entry in reply]


def _letter(reply: Reply, topic: str) -> StoredLetter:
    assert isinstance(reply, list)
    entry, words = reply
    assert isinstance(entry, bytes)
    assert isinstance(words, list)
    fields = dict(zip(words[::2], words[1::2], strict=True))

    def text(name: bytes) -> bytes:
        value = fields.get(name, b"")
        assert isinstance(value, bytes)
        return value

    return StoredLetter(
        id=_name(entry, topic),
        topic=topic,
        group=text(b"g").decode() if b"g" in fields else None,
        position=text(b"p").decode(),
        body=text(b"b"),
        evidence=text(b"e"),
        buried_at=order_of(entry.decode())[0] / 1000,
    )
