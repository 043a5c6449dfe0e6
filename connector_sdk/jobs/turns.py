"""The order of a session over several batches: who has held back events of it goes first."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TypeAlias

import anyio

from connector_sdk.payloads import Payload

__all__ = ["SessionKey", "Turn", "Turns", "session_key"]

#: What is kept in order together.
SessionKey: TypeAlias = Hashable


def session_key(payload: Payload) -> SessionKey:
    """Return the session of *payload*; an event without one is in order with nobody, and a session of its own."""
    return payload.session_id if payload.session_id is not None else ("event", id(payload))


class Turn:
    """A place in the line of a session."""

    def __init__(self, line: _Line) -> None:
        self._line = line
        self.came = anyio.Event()

    @property
    def is_void(self) -> bool:
        """Whether events before these went back to the buffer: then these must go back too, or they would overtake them."""
        return self._line.is_void


class _Line:
    def __init__(self) -> None:
        self.turns: deque[Turn] = deque()
        self.is_void = False


class Turns:
    """The lines of all sessions that have events held back."""

    def __init__(self) -> None:
        self._lines: dict[SessionKey, _Line] = {}

    def __contains__(self, session: SessionKey) -> bool:
        return session in self._lines

    def take(self, session: SessionKey) -> Turn:
        """Take the last place in the line of *session*; its turn comes when all before it have ended."""
        line = self._lines.setdefault(session, _Line())
        turn = Turn(line)
        line.turns.append(turn)
        if len(line.turns) == 1:
            turn.came.set()
        return turn

    def end(self, session: SessionKey, turn: Turn, *, settled: bool) -> None:
        """End *turn*; unless its events are *settled* all turns behind it are void, until the line is empty."""
        line = self._lines[session]
        was_first = line.turns[0] is turn
        line.turns.remove(turn)
        line.is_void = line.is_void or not settled
        if not line.turns:
            del self._lines[session]
        elif was_first:
            line.turns[0].came.set()
