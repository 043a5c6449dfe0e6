"""What becomes of entries: where a subscription's work puts them, and who waits for the outcome."""

from __future__ import annotations

from typing import Protocol

import anyio

from connector_sdk.bus.events import Event
from connector_sdk.bus.queueing import Entry

__all__ = ["Fate", "Tally"]


class Fate(Protocol):
    """Where entries go when the handler is done with them; nothing here waits."""

    def acknowledge(self, entry: Entry) -> None:
        """It is finished."""

    def postpone(self, entry: Entry, after: float, notes: bytes) -> bool:
        """Let it come again from the log; False: it stays in hand, and is tried again from here."""

    def bury(self, entry: Entry, evidence: bytes) -> None:
        """It is given up."""

    async def renew(self) -> None:
        """Say that who has the entries lives."""

    def failed(self, event: Event | None, error: BaseException, *, dead: bool) -> None:
        """Tell the outside that an attempt failed."""


class Tally:
    """What became of some entries that somebody waits for."""

    def __init__(self) -> None:
        self.open = 0
        self.succeeded = 0
        self.dead_lettered = 0
        self.failed = 0
        self.done = anyio.Event()

    def close_one(self) -> None:
        """One of them has its outcome."""
        self.open -= 1
        if not self.open:
            self.done.set()
