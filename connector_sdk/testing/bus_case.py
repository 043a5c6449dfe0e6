"""What the tests of an `EventBus` over a log have in common: buses, handlers that remember, and patience."""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Unpack

import anyio
import pytest

from connector_sdk.bus.bus import EventBus
from connector_sdk.bus.events import Event
from connector_sdk.bus.log import EventLog
from connector_sdk.bus.registry import EventRegistry
from connector_sdk.testing.log_case import LogOptions

__all__ = ["TOPIC", "BusCase", "Seen", "event", "number", "until"]

TOPIC: Final = "orders:created"


def event(value: int, topic: str = TOPIC, kind: str = "created") -> Event:
    """Make an event that is known by its number."""
    return Event(kind, topic, {"number": value})


def number(one: Event) -> int:
    """Return the number of an event."""
    payload = one.payload
    assert isinstance(payload, dict)
    value = payload["number"]
    assert isinstance(value, int)
    return value


async def until(condition: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait until *condition* holds; fail after *patience* seconds."""
    with anyio.move_on_after(patience):
        while not condition():  # noqa: ASYNC110 - what is waited for is a condition of any kind
            await anyio.sleep(0.002)
    assert condition(), "it did not come about in time"


class Seen:
    """A handler that remembers what it got, in order."""

    def __init__(self, patience: float = 30.0) -> None:
        self.events: list[Event] = []
        self._patience = patience

    async def __call__(self, one: Event) -> None:
        """Take an event."""
        self.events.append(one)

    @property
    def numbers(self) -> list[int]:
        """The numbers of what it got."""
        return [number(one) for one in self.events]

    async def wait_for(self, count: int) -> Sequence[int]:
        """Wait until it got *count* events; return their numbers."""
        await until(lambda: len(self.events) >= count, self._patience)
        return self.numbers


class BusCase(abc.ABC):
    """What a test class must give; see `EventBusContract`."""

    #: Seconds after which members die that are to die in a test; longer for a storage that is slow.
    hold: float = 0.6
    #: Seconds that a test waits for what must happen before it fails.
    patience: float = 30.0

    @abc.abstractmethod
    async def make_log(self, **options: Unpack[LogOptions]) -> EventLog:
        """
        Return a new log object, not connected, over the storage of this test, which nobody used before.

        A second call in the same test, with the same options, returns what another process would make; a log for one
        process may return the same object.
        """

    @pytest.fixture(autouse=True)
    def _on_an_event_loop(self, anyio_backend: str) -> None:
        """Let every test run on each event loop that `anyio_backend` names."""
        assert anyio_backend

    @asynccontextmanager
    async def bus(
        self, *, hold: float = 600.0, registry: EventRegistry | None = None, observer: object | None = None,
        close_timeout: float = 30.0, queue_size: int = 1000, **options: Unpack[LogOptions],
    ) -> AsyncIterator[EventBus]:  # fmt: skip
        """Make a bus and connect it; it is closed at the end. A second one is what another process would make."""
        log = await self.make_log(**options)
        bus = EventBus(
            log, registry=registry, hold=hold, observer=observer, close_timeout=close_timeout, queue_size=queue_size
        )
        async with bus:
            yield bus

    def seen(self) -> Seen:
        """Make a handler that remembers."""
        return Seen(self.patience)
