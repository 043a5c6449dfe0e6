"""What has happened on a ConnectorServer, in order: where events come from, which ids they have, who can resume where."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from connector_sdk.errors import ConfigurationError
from connector_sdk.testing.http11 import Event, data_of, encode_event
from connector_sdk.testing.records import LoggedEvent

__all__ = ["EventLog"]

_MOST_BYTES: Final = 128 * 1024  # about what one write carries
_TRIM_STEP: Final = 1024


class EventLog:
    """
    The events that have happened, numbered from 1, and those that are still to come.

    An event of the source happens when the first connection wants it, or when its time comes if there is a rate; that of
    `publish` happens at once. A position is the number of events before it, hence also the id of the event before it.
    Any thread may publish and look; only the server's thread reads, because only there an iterator may be asked.

    Args:
        paced: events of the source happen by the clock (the server calls `pull`), never because somebody reads.
    """

    def __init__(self, events: Iterable[Event], *, ids: bool, loop: bool, history: int | None, paced: bool) -> None:
        self._lock = threading.RLock()  # re-entrant: a generator may publish while it is asked for its next event
        self._blocks: list[bytes] = []
        self._base = 0
        self._ids = ids
        self._history = history
        self._paced = paced
        self._bodies, self._left = _bodies(events, loop)
        self._publish_waits_for_source = self._left is not None and not paced
        self._served = False
        #: Whether the source has nothing more.
        self.exhausted = self._left == 0
        #: What the source raised; it is then exhausted.
        self.error: Exception | None = None

    @property
    def end(self) -> int:
        """The position after the last event that has happened."""
        with self._lock:
            return self._base + len(self._blocks)

    @property
    def events(self) -> list[LoggedEvent]:
        """The events that are kept, oldest first."""
        with self._lock:
            first = self._first_resumable() - self._base
            blocks, number = self._blocks[first:], self._base + first
        return [
            LoggedEvent(str(number + offset) if self._ids else "", data_of(block))
            for offset, block in enumerate(blocks, start=1)
        ]

    def publish(self, event: Event) -> str:
        """Let *event* happen now, after all of a sequence that was still to come; return its id ("" without ids)."""
        body = encode_event(event)
        with self._lock:
            if self._publish_waits_for_source:
                while self._pull_one():
                    pass
            number = self._append(body)
        return str(number) if self._ids else ""

    def pull(self, count: int) -> int:
        """Let up to *count* events of the source happen; return how many did."""
        with self._lock:
            pulled = 0
            while pulled < count and self._pull_one():
                pulled += 1
        return pulled

    def read(self, position: int, count: int) -> list[bytes]:
        """Return up to *count* events from *position* on as they go over the wire, about 128 kB at most; may be empty."""
        blocks: list[bytes] = []
        size = 0
        with self._lock:
            index = position - self._base
            while len(blocks) < count and size < _MOST_BYTES:
                if index >= len(self._blocks) and (self._paced or not self._pull_one()):
                    break
                block = self._blocks[index]
                blocks.append(block)
                size += len(block)
                index += 1
        return blocks

    def is_over(self, position: int) -> bool:
        """Whether there is and will be nothing from *position* on, unless somebody publishes."""
        return not self.read(position, 1) and self.exhausted

    def begin(self, asked: str | None, *, replay: bool, resume: bool) -> tuple[int, str | None]:
        """
        Decide where a connection begins and what its `Last-Event-ID` response header says (None: no header).

        *asked* is the id the client wants to resume after. The header repeats it when that is possible; otherwise the
        connection begins at the earliest event kept, and the header says so (Mercure protocol, "Reconciliation").
        """
        with self._lock:
            is_first, self._served = not self._served, True
            if asked and self._ids and resume:
                position = self._position_of(asked)
                return (position, asked) if position is not None else (self._first_resumable(), "earliest")
            if is_first or (replay and resume):
                return self._first_resumable(), None
            return self._base + len(self._blocks), None

    def earliest(self) -> int:
        """The position of the earliest event kept."""
        with self._lock:
            return self._first_resumable()

    def trim(self, needed_from: int) -> None:
        """Forget what is neither history nor needed by a connection that has come to *needed_from*."""
        if self._history is None:
            return
        with self._lock:
            surplus = min(self._first_resumable(), needed_from) - self._base
            if surplus >= _TRIM_STEP:  # in steps, because cutting the front of a list moves the rest of it
                del self._blocks[:surplus]
                self._base += surplus

    def _position_of(self, asked: str) -> int | None:
        if not (asked.isascii() and asked.isdigit() and str(number := int(asked[:18])) == asked):
            return None
        return number if self._first_resumable() <= number <= self._base + len(self._blocks) else None

    def _first_resumable(self) -> int:
        end = self._base + len(self._blocks)
        return self._base if self._history is None else max(self._base, end - self._history)

    def _pull_one(self) -> bool:
        if self.exhausted:
            return False
        try:
            body = next(self._bodies, None)
        except Exception as error:  # noqa: BLE001 - the iterator is the user's; ConnectorServer.close() raises its error
            self.error = error
            body = None
        if body is None:
            self.exhausted = True
            return False
        self._append(body)
        if self._left is not None:
            self._left -= 1
            self.exhausted = self._left == 0
        return True

    def _append(self, body: bytes) -> int:
        number = self._base + len(self._blocks) + 1
        self._blocks.append(b"id: %d\n%b" % (number, body) if self._ids else body)
        return number


def _bodies(events: Iterable[Event], loop: bool) -> tuple[Iterator[bytes], int | None]:
    """Encode each event once; say how many there are, where that is known. A sequence is encoded (and refused) at once."""
    if isinstance(events, bytes | str | Mapping | msgspec.Struct) or not isinstance(events, Iterable):
        raise ConfigurationError("events", events, "a sequence or an iterator of events; one event is [event]")
    if not isinstance(events, Sequence):
        encoded = map(encode_event, events)
        return (itertools.cycle(encoded) if loop else encoded), None
    bodies = [encode_event(event) for event in events]
    return (itertools.cycle(bodies), None) if loop else (iter(bodies), len(bodies))
