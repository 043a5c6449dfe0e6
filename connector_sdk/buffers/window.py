"""
The pure core of the in-memory buffer: a queue in order of arrival. It knows no lock and no clock; time is an argument.

No event has an object of its own beside the payload (that would cost 100 bytes an event). What must be known of each is
kept in columns, deques beside `items`, and only while it is needed: sizes with a bound in bytes, times with a bound in
age. Events that a lease gave back, always at the front, have a key that tells their order and a time; the others, which
never were on lease, are called *fresh*.

The age of the oldest fresh event is known from sparse marks. Fresh events are numbered in order of arrival; a mark
(number, time) says that the events from that number on arrived at that time or later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import accumulate, chain, compress, count, islice, repeat
from operator import itemgetter, not_
from typing import TypeVar

from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload, UnknownPayload

__all__ = ["MARK_EVERY", "Batch", "Window"]

#: A mark is left at least every so many arrivals.
MARK_EVERY = 1024

#: Seconds between the marks that reading leaves.
_MARK_INTERVAL = 1.0

_KNOWN: dict[str, type[ActionsPayload | SummaryPayload]] = {
    ActionsPayload.type: ActionsPayload,
    SummaryPayload.type: SummaryPayload,
}

T = TypeVar("T")


@dataclass(slots=True)
class Batch:
    """Events taken out for a lease, with what is needed to put them back in their place."""

    items: Sequence[Payload] = ()
    keys: Sequence[int] = ()  #: their order among all events ever leased
    sizes: Sequence[int] = ()  #: bytes of each; empty when sizes are not kept
    times: Iterable[float] = ()  #: each arrived at this time or later; may go on for ever

    def without(self, positions: Collection[int]) -> Batch:
        """Return the batch less the events at *positions*."""
        kept = [index not in positions for index in range(len(self.items))]
        return Batch(
            list(compress(self.items, kept)),
            list(compress(self.keys, kept)),
            list(compress(self.sizes, kept)),
            list(compress(self.times, kept)),
        )


class Window:
    """
    The events that wait, oldest first.

    `items` is one deque for life, so that the hot path may hold on to it. `max_size` 0 and `max_bytes` None mean no
    bound. Sizes are kept when there is a bound in bytes, the time of each event when *keep_times*.

    `entered`, a parameter of several methods, is how many events ever entered this window.
    """

    __slots__ = ("bytes", "items", "keep_times", "keys", "leased", "marks", "max_bytes", "max_size", "sizes", "times")

    def __init__(self, max_size: int, max_bytes: int | None, *, keep_times: bool) -> None:
        self.max_size = max_size
        self.max_bytes = max_bytes
        self.keep_times = keep_times
        self.items: deque[Payload] = deque()
        self.keys: deque[int] = deque()  # of the events that a lease gave back, the first of `items`
        self.sizes: deque[int] = deque()
        self.times: deque[float] = deque()  # of every event, or only of those with a key
        self.bytes = 0
        self.leased = 0  # fresh events ever leased: the next key
        self.marks: list[tuple[int, float]] = []

    # -- bounds

    def has_room(self, size: int) -> bool:
        """Whether an event of *size* bytes may enter. One alone always may, or a large one could never."""
        if not self.items:
            return True
        if self.max_size and len(self.items) >= self.max_size:
            return False
        return self.max_bytes is None or self.bytes + size <= self.max_bytes

    def push(self, payload: Payload, size: int, now: float) -> None:
        """Let an event in at the end."""
        self.items.append(payload)
        if self.max_bytes is not None:
            self.sizes.append(size)
            self.bytes += size
        if self.keep_times:
            self.times.append(now)

    def evict_for(self, size: int) -> list[Payload]:
        """Take out the oldest events until one of *size* bytes has room; return them."""
        evicted: list[Payload] = []
        while not self.has_room(size):
            evicted += self.take(1)
        return evicted

    def evict_excess(self) -> list[Payload]:
        """Take out the oldest events until the bounds hold again, at least one staying; return them."""
        evicted: list[Payload] = []
        while len(self.items) > 1 and (
            (self.max_size and len(self.items) > self.max_size)
            or (self.max_bytes is not None and self.bytes > self.max_bytes)
        ):
            evicted += self.take(1)
        return evicted

    def evict_older(self, arrived_by: float) -> list[Payload]:
        """Take out the events that arrived at *arrived_by* or before; return them. Needs times."""
        old = 0
        for arrived in self.times:
            if arrived > arrived_by:
                break
            old += 1
        return self.take(old) if old else []

    # -- taking

    def take_all(self) -> list[Payload]:
        """Take out every event."""
        taken = list(self.items)
        self.items.clear()
        self.keys.clear()
        self.sizes.clear()
        self.times.clear()
        self.marks.clear()
        self.bytes = 0
        return taken

    def take(self, limit: int) -> list[Payload]:
        """Take out the *limit* oldest events, or all when there are fewer."""
        if limit >= len(self.items):
            return self.take_all()
        if self.keys:
            _pop_left(self.keys, limit)
        if self.sizes:
            self.bytes -= sum(_pop_left(self.sizes, limit))
        if self.times:
            _pop_left(self.times, limit)
        return _pop_left(self.items, limit)

    def take_batch(self, limit: int, entered: int) -> Batch:
        """Take out the *limit* oldest events so that they can be put back."""
        limit = min(limit, len(self.items))
        since = self._fresh_since(entered)
        keys: Sequence[int] = range(self.leased, self.leased + limit)  # nothing that is made for each event
        times: Iterable[float] = repeat(since)
        if self.keys:
            keys = list(islice(chain(self.keys, keys), limit))
        if self.times:
            times = list(islice(chain(self.times, times), limit))
        sizes = list(islice(self.sizes, limit)) if self.sizes else ()
        self.leased += max(0, limit - len(self.keys))
        return Batch(self.take(limit), keys, sizes, times)

    def take_batch_of(self, names: AbstractSet[str], limit: int, entered: int) -> Batch:
        """
        Take out the *limit* oldest events whose `type` is in *names* so that they can be put back; the others keep their order.

        Those that stay in front of the last one get keys, too, for what is put back goes between them.
        """
        matches = _matcher(names)
        positions = list(islice((place for place, payload in enumerate(self.items) if matches(payload)), limit))
        if not positions:
            return Batch()
        selected = [False] * (positions[-1] + 1)
        for place in positions:
            selected[place] = True
        self._give_keys(len(selected) - len(self.keys), entered)
        taken = Batch(
            _pick(self.items, selected),
            _pick(self.keys, selected),
            _pick(self.sizes, selected),
            _pick(self.times, selected),
        )
        self.bytes -= sum(taken.sizes)
        return taken

    def take_types(self, names: AbstractSet[str], limit: int | None, entered: int) -> list[Payload]:
        """Take out the oldest events whose `type` is in *names*; the others keep their order."""
        if limit is None and not self.keys and not self.sizes and not self.times:
            return self._take_types_at_once(names, entered)
        selected = list(map(_matcher(names), self.items))
        if limit is not None:
            positions = list(islice(compress(count(), selected), limit))
            end = positions[-1] + 1 if positions else 0
            selected[end:] = [False] * (len(selected) - end)
        return self._take_selected(selected, entered)

    def put_back(self, batch: Batch) -> None:
        """Let the events of a lease in again, each at its place in the order of arrival."""
        if not batch.items:
            return
        returned = len(self.keys)
        front = Batch(
            _pop_left(self.items, returned),
            _pop_left(self.keys, returned),
            _pop_left(self.sizes, returned),
            _pop_left(self.times, returned),
        )
        rows = sorted(chain(_rows(front), _rows(batch)), key=itemgetter(0))
        rows.reverse()  # extendleft turns them round again
        self.keys.extendleft(row[0] for row in rows)
        self.items.extendleft(row[1] for row in rows)
        self.times.extendleft(row[3] for row in rows)
        if self.max_bytes is not None:
            self.sizes.extendleft(row[2] for row in rows)
            self.bytes += sum(batch.sizes)

    # -- looking

    def last(self, limit: int | None) -> list[Payload]:
        """Return the *limit* newest events, oldest first, or all; cost grows with the answer, not with the window."""
        if limit is None or limit >= len(self.items):
            return list(self.items)
        newest = list(islice(reversed(self.items), limit))
        newest.reverse()
        return newest

    # -- age

    def mark(self, entered: int, now: float) -> None:
        """Note that the events yet to come arrive at *now* or later; forget the marks of no more use."""
        head = self._first_fresh(entered)
        useless = 0
        while useless + 1 < len(self.marks) and self.marks[useless + 1][0] <= head:
            useless += 1
        del self.marks[:useless]
        self.marks.append((entered, now))

    def mark_due(self, entered: int) -> bool:
        """Whether an arrival must leave a mark: the first fresh event, and the 1024th since the last mark."""
        if self.keep_times:
            return False
        return len(self.items) == len(self.keys) or not self.marks or entered - self.marks[-1][0] >= MARK_EVERY

    def mark_on_read(self, entered: int, now: float) -> None:
        """Leave a mark if events arrived since the last one and that is a second ago."""
        if self.marks and entered > self.marks[-1][0] and now - self.marks[-1][1] >= _MARK_INTERVAL:
            self.mark(entered, now)

    def oldest_time(self, entered: int) -> float | None:
        """Return a time before which no waiting event arrived: exact with times, else from the marks."""
        if not self.items:
            return None
        return self.times[0] if self.times else self._fresh_since(entered)

    # -- inner

    def _first_fresh(self, entered: int) -> int:
        return entered - (len(self.items) - len(self.keys))

    def _fresh_since(self, entered: int) -> float:
        head = self._first_fresh(entered)
        since = self.marks[0][1] if self.marks else 0.0
        for number, time in self.marks:
            if number > head:
                break
            since = time
        return since

    def _give_keys(self, number: int, entered: int) -> None:
        """Treat the first *number* fresh events as if a lease had given them back."""
        if number <= 0:
            return
        if not self.keep_times:
            self.times.extend(self._fresh_times(number, entered))
        self.keys.extend(range(self.leased, self.leased + number))
        self.leased += number

    def _fresh_times(self, number: int, entered: int) -> list[float]:
        """Return for each of the first *number* fresh events a time before which it did not arrive."""
        since = self._fresh_since(entered)
        times: list[float] = []
        for position, (_, time) in zip(self._mark_positions(entered), self.marks, strict=True):
            times += repeat(since, min(position, number) - len(times))
            since = time if position else since
        return [*times, *repeat(since, number - len(times))]

    def _mark_positions(self, entered: int) -> list[int]:
        """Where each mark stands among the fresh events, counted from the first of them."""
        head = self._first_fresh(entered)
        fresh = entered - head
        return [min(max(number - head, 0), fresh) for number, _ in self.marks]

    def _shift_marks(self, taken_before: Iterable[int], taken: int) -> None:
        # Events taken from the middle leave no gap in the numbers: those in front of them move up, marks and all.
        self.marks = [
            (number + taken - before, time) for (number, time), before in zip(self.marks, taken_before, strict=False)
        ]

    def _take_types_at_once(self, names: AbstractSet[str], entered: int) -> list[Payload]:
        # One loop that touches each event once: with 100,000 of them in memory that beats several passes of itertools.
        # For one known type it compares classes and nothing more, which halves the time.
        if names >= _KNOWN.keys() and UnknownPayload not in set(map(type, self.items)):
            return self.take_all()
        only = _KNOWN.get(*names) if len(names) == 1 else None
        matches = _matcher(names)
        taken: list[Payload] = []
        kept: list[Payload] = []
        taken_before: list[int] = []
        source, position = iter(self.items), 0
        for end in (*self._mark_positions(entered), len(self.items)):
            part = islice(source, end - position)
            if only is not None:
                for payload in part:
                    if type(payload) is only:
                        taken.append(payload)
                    else:
                        kept.append(payload)
            else:
                for payload in part:
                    (taken if matches(payload) else kept).append(payload)
            position = end
            taken_before.append(len(taken))
        if not taken:
            return taken
        self._shift_marks(taken_before, len(taken))
        self.items.clear()
        self.items.extend(kept)
        return taken

    def _take_selected(self, selected: list[bool], entered: int) -> list[Payload]:
        if not any(selected):
            return []
        before = list(accumulate(selected[len(self.keys) :], initial=0))
        self._shift_marks([before[position] for position in self._mark_positions(entered)], before[-1])
        taken = list(compress(self.items, selected))
        self.bytes -= sum(compress(self.sizes, selected))
        kept = list(map(not_, selected))
        _keep(self.keys, kept)
        _keep(self.sizes, kept)
        _keep(self.times, kept)
        _keep(self.items, kept)
        return taken


def _matcher(names: AbstractSet[str]) -> Callable[[Payload], bool]:
    """Return the test for a payload of one of the types; the names of known types mean their classes."""
    kinds = tuple(kind for name, kind in _KNOWN.items() if name in names)
    others = names - _KNOWN.keys()

    def matches(payload: Payload) -> bool:
        return payload.type in others if type(payload) is UnknownPayload else type(payload) in kinds

    return matches


def _pop_left(column: deque[T], limit: int) -> list[T]:
    """Take the first *limit* values out of a column that may be shorter."""
    # Half the time of a loop that calls `popleft`: none of it is Python's own.
    return list(map(deque.popleft, repeat(column, min(limit, len(column)))))


def _pick(column: deque[T], selected: Sequence[bool]) -> list[T]:
    """Take the selected ones of the first values out of a column that may be empty."""
    values = _pop_left(column, len(selected))
    column.extendleft(compress(reversed(values), map(not_, reversed(selected))))
    return list(compress(values, selected))


def _keep(column: deque[T], kept: list[bool]) -> None:
    """Leave in a column, which may be shorter than *kept*, what is to be kept."""
    values = list(compress(column, kept))
    column.clear()
    column.extend(values)


def _rows(batch: Batch) -> Iterator[tuple[int, Payload, int, float]]:
    return zip(batch.keys, batch.items, batch.sizes or repeat(0), batch.times, strict=False)
