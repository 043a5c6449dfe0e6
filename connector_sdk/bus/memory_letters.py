"""The dead letters of a `MemoryLog`."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from connector_sdk.bus.log import START, Body, StoredLetter

__all__ = ["MemoryLetters"]


class MemoryLetters:
    """Dead letters by their id, oldest first; of each topic *bound* are kept, and the oldest go."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._letters: dict[int, StoredLetter] = {}
        self._of_topic: dict[str, dict[int, None]] = {}
        self._numbers = itertools.count(1)

    def add(self, topic: str, group: str | None, position: str, body: Body, evidence: bytes) -> str:
        """Keep a letter, and return its id."""
        number = next(self._numbers)
        self._letters[number] = StoredLetter(str(number), topic, group, position, body, evidence, time.time())
        mine = self._of_topic.setdefault(topic, {})
        mine[number] = None
        while len(mine) > self._bound:
            self._discard(next(iter(mine)))
        return str(number)

    def page(self, topic: str | None, limit: int, cursor: str) -> tuple[list[StoredLetter], str]:
        """Return letters after *cursor*, and where to go on."""
        after = int(cursor) if cursor != START else 0
        numbers = self._letters if topic is None else self._of_topic.get(topic, {})
        found = list(itertools.islice((number for number in numbers if number > after), limit + 1))
        letters = [self._letters[number] for number in found[:limit]]
        return letters, letters[-1].id if len(found) > limit else START

    def get(self, letter: str) -> StoredLetter | None:
        """Return a letter."""
        return self._letters.get(int(letter)) if letter.isdecimal() else None

    def take(self, letter: str) -> StoredLetter | None:
        """Return a letter and keep it no longer."""
        found = self.get(letter)
        if found is not None:
            self._discard(int(letter))
        return found

    def purge(self, letters: Sequence[str]) -> int:
        """Discard letters, and return how many there were."""
        return sum(self.take(letter) is not None for letter in letters)

    def count(self, topic: str) -> int:
        """Return how many letters a topic has."""
        return len(self._of_topic.get(topic, ()))

    def _discard(self, number: int) -> None:
        mine = self._of_topic[self._letters.pop(number).topic]
        del mine[number]
