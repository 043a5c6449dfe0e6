"""The entries of a subscription that wait, pure: in line, behind one of the same key, or for the time of their next attempt."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Hashable
from typing import Final, TypeAlias, final

from connector_sdk.bus.log import Delivery, Record

__all__ = ["NO_KEY", "Entry", "Keyed", "Waiting"]

#: An entry in hand; a Record is one at its first attempt.
Entry: TypeAlias = Record | Delivery


class _NoKey:
    """The key of entries without one."""


NO_KEY: Final = _NoKey()


@final
class Keyed:
    """An entry whose turn it is among those of its key."""

    __slots__ = ("entry", "key")

    def __init__(self, entry: Entry, key: Hashable) -> None:
        self.entry = entry
        self.key = key


@final
class Waiting:
    """What waits. Time is an argument."""

    def __init__(self) -> None:
        #: In line, the next one first.
        self.ready: deque[Entry | Keyed] = deque()
        self._turns: dict[Hashable, deque[Entry]] = {}
        self._blocked = 0
        self._later: list[tuple[float, int, Entry | Keyed]] = []
        self._held_keys: set[Hashable] = set()
        #: How many wait for the time of another attempt, or behind one of their key that does.
        self.held = 0
        self._order = itertools.count()

    def __len__(self) -> int:
        return len(self.ready) + self._blocked + len(self._later)

    def has_turn(self, entry: Entry, key: Hashable) -> bool:
        """Whether no other entry of *key* is at work or to be tried again; else *entry* waits for its turn."""
        turn = self._turns.get(key)
        if turn is None:
            self._turns[key] = deque()
            return True
        turn.append(entry)
        self._blocked += 1
        self.held += key in self._held_keys
        return False

    def release(self, key: Hashable) -> bool:
        """Let the next entry of *key* have its turn; return whether there is one."""
        turn = self._turns.get(key)
        if turn:
            self._blocked -= 1
            self.ready.appendleft(Keyed(turn.popleft(), key))
            return True
        self._turns.pop(key, None)
        return False

    def hold(self, entry: Entry, key: Hashable, due: float) -> bool:
        """Keep *entry*, and with it all of its key, until *due*; return whether it is the first to be due."""
        heapq.heappush(self._later, (due, next(self._order), entry if key is NO_KEY else Keyed(entry, key)))
        self.held += 1
        if key is not NO_KEY:
            self._held_keys.add(key)
            self.held += len(self._turns.get(key, ()))
        return self._later[0][0] == due

    @property
    def next_due(self) -> float | None:
        """When the next entry is to be tried again, None when there is none."""
        return self._later[0][0] if self._later else None

    def bring_again(self) -> None:
        """Put the entry that is due first at the head of the line."""
        item = heapq.heappop(self._later)[2]
        self.held -= 1
        if type(item) is Keyed:
            self._held_keys.discard(item.key)
            self.held -= len(self._turns.get(item.key, ()))
        self.ready.appendleft(item)

    def drop_oldest(self) -> None:
        """Forget the entry at the head of the line."""
        item = self.ready.popleft()
        if type(item) is Keyed:
            self.release(item.key)

    def take_all(self) -> tuple[list[Entry], list[tuple[float, Entry]]]:
        """Take everything: entries in order, and those to be tried again with the times when they are due."""
        ready = [_entry_of(item) for item in self.ready]
        for turn in self._turns.values():
            ready.extend(turn)
        later = [(due, _entry_of(item)) for due, _, item in sorted(self._later, key=lambda one: one[:2])]
        self.ready.clear()
        self._turns.clear()
        self._later.clear()
        self._held_keys.clear()
        self._blocked = self.held = 0
        return ready, later


def _entry_of(item: Entry | Keyed) -> Entry:
    return item.entry if isinstance(item, Keyed) else item
