"""What becomes of entries when their handler is done: told to the log in the background, in few requests, until it has them."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from connector_sdk.bus.events import Event
from connector_sdk.bus.handlers import is_delay
from connector_sdk.bus.log import Delivery, EventLog, LogMember
from connector_sdk.bus.outages import Outages, Patience
from connector_sdk.bus.queueing import Entry
from connector_sdk.errors import BusUnavailableError
from connector_sdk.observe import Notifier, RateLimitedLogger

__all__ = ["BroadcastSettling", "GroupSettling", "Settling"]

logger = logging.getLogger("connector_sdk.bus")

#: Acknowledgements in one request.
_MOST: Final = 1000


class Settling:
    """
    The steps that a subscription owes the log. Each is tried until it is done: while the log is away they wait here.

    Handlers never wait for it. One request is under way at a time; what is finished meanwhile goes with the next.
    """

    def __init__(self, name: str, outages: Outages, notifier: Notifier) -> None:
        self._name = name
        self._patience = Patience(outages)
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._acknowledgements: list[Delivery] = []
        self._steps: deque[Callable[[], Awaitable[object]]] = deque()
        self._news = anyio.Event()
        self._asleep = False
        self._empty = anyio.Event()
        self._empty.set()

    @property
    def unsettled(self) -> int:
        """Entries whose end the log has not confirmed."""
        return len(self._acknowledgements) + len(self._steps)

    async def run(self) -> None:
        """Tell the log, until cancelled."""
        try:
            while True:
                if not self.unsettled:
                    self._empty.set()
                    self._asleep = True
                    await self._news.wait()
                    self._news = anyio.Event()
                try:
                    await self._settle_some()
                except Exception as error:  # nothing may end this: the log must hear of it some day
                    if not isinstance(error, BusUnavailableError):
                        logger.debug("the log failed", exc_info=True)
                    await self._patience.wait(error)
                else:
                    self._patience.succeeded()
        finally:
            self._patience.give_up()

    async def wait_until_settled(self) -> None:
        """Wait until the log knows all."""
        while self.unsettled:
            self._empty = anyio.Event()
            await self._empty.wait()

    async def renew(self) -> None:
        """Nothing here runs out, unless there is a member."""

    def acknowledge(self, entry: Entry) -> None:
        """Without a group nobody is told."""

    def postpone(self, entry: Entry, after: float, notes: bytes) -> bool:
        """Without a group it stays in hand."""
        return False

    def bury(self, entry: Entry, evidence: bytes) -> None:
        """Move it to the dead letters."""
        raise NotImplementedError

    def failed(self, event: Event | None, error: BaseException, *, dead: bool) -> None:
        """Tell log and observer that an attempt failed; a wish to be called later is no failure."""
        if is_delay(error):
            return
        name = type(error).__name__
        event_type = "" if event is None else event.type
        end = "it goes to the dead letters" if dead else "it comes again"
        what = "an entry that is no event" if event is None else f"an event of type {event_type[:80]!r}"
        self._log.warning(name, "%s: %s in handling %s; %s", self._name, name, what, end)
        logger.debug("%s: the handler failed", self._name, exc_info=error)
        self._notifier.tell(
            "bus_handler_failed", subscription=self._name, event_type=event_type, error=error, dead=dead
        )

    async def _settle_some(self) -> None:
        if self._steps:
            try:
                await self._steps[0]()
            except Exception:
                self._steps.rotate(-1)  # what is refused again and again must not hold up the others
                raise
            self._steps.popleft()

    def _owe(self, step: Callable[[], Awaitable[object]]) -> None:
        self._steps.append(step)
        self._wake()

    def _wake(self) -> None:
        if self._asleep:
            self._asleep = False
            self._news.set()


class BroadcastSettling(Settling):
    """For a subscription without a group: dead letters alone."""

    def __init__(self, name: str, outages: Outages, notifier: Notifier, log: EventLog) -> None:
        super().__init__(name, outages, notifier)
        self._event_log = log

    def bury(self, entry: Entry, evidence: bytes) -> None:
        """Add a dead letter."""
        self._owe(lambda: self._event_log.bury(entry.topic, entry.position, entry.body, evidence))


class GroupSettling(Settling):
    """For a member of a group."""

    def __init__(self, name: str, outages: Outages, notifier: Notifier, member: LogMember) -> None:
        super().__init__(name, outages, notifier)
        self._member = member

    def acknowledge(self, entry: Entry) -> None:
        """It is finished for the group."""
        self._acknowledgements.append(entry)  # type: ignore[arg-type]  # a group's entries are Deliveries
        if self._asleep:
            self._wake()

    def postpone(self, entry: Entry, after: float, notes: bytes) -> bool:
        """Let it come again to any member."""
        assert isinstance(entry, Delivery)
        due = anyio.current_time() + after
        self._owe(lambda: self._member.postpone(entry, max(0.0, due - anyio.current_time()), notes))
        return True

    def bury(self, entry: Entry, evidence: bytes) -> None:
        """Move it to the dead letters."""
        assert isinstance(entry, Delivery)
        self._owe(lambda: self._member.bury(entry, evidence))

    async def renew(self) -> None:
        """Say that the member lives."""
        await self._member.beat()

    async def _settle_some(self) -> None:
        some = self._acknowledgements[:_MOST]
        if some:
            await self._member.acknowledge(some)
            del self._acknowledgements[: len(some)]
        await super()._settle_some()
