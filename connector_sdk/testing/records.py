"""What a ConnectorServer remembers for the test that asks: requests, events, counts. Thread-safe; nobody polls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import msgspec

__all__ = ["LoggedEvent", "Request", "Scoreboard"]


class Request(msgspec.Struct, frozen=True):
    """
    One request that the server read.

    `number` counts from 1, `path` is the request target as it came (query included), `headers` have lower-case names,
    `time` is Unix seconds.
    """

    number: int
    method: str
    path: str
    headers: Mapping[str, str]
    time: float

    @property
    def last_event_id(self) -> str | None:
        """The id the client asks to resume after; None without the header."""
        return self.headers.get("last-event-id")

    @property
    def authorization(self) -> str | None:
        """The `Authorization` header as it came; None without it."""
        return self.headers.get("authorization")


class LoggedEvent(msgspec.Struct, frozen=True):
    """One event that has happened: its id ("" when the server sends none) and the bytes of its data (JSON, as a rule)."""

    id: str
    data: bytes


class Scoreboard:
    """Requests, open connections and sent events; any thread may read, and wait until a number is reached."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: list[Request] = []
        self._connections = 0
        self._sent = 0
        self._closed = False

    @property
    def requests(self) -> list[Request]:
        """A copy of the list of requests, oldest first."""
        with self._changed:
            return list(self._requests)

    @property
    def connections(self) -> int:
        """Requests that are being answered now."""
        with self._changed:
            return self._connections

    @property
    def sent(self) -> int:
        """Events written completely, over all connections."""
        with self._changed:
            return self._sent

    def request_came(self, method: str, path: str, headers: Mapping[str, str]) -> Request:
        """Note a request and the connection that serves it."""
        with self._changed:
            request = Request(len(self._requests) + 1, method, path, headers, time.time())
            self._requests.append(request)
            self._connections += 1
            self._changed.notify_all()
        return request

    def connection_ended(self) -> None:
        """The connection of a request noted before is closed."""
        with self._changed:
            self._connections -= 1
            self._changed.notify_all()

    def events_sent(self, count: int) -> None:
        """*count* more events are on the wire."""
        with self._changed:
            self._sent += count
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come: end every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for_requests(self, count: int, timeout: float) -> list[Request]:
        """Wait until *count* requests came; see ConnectorServer."""
        self._wait(
            lambda: len(self._requests) >= count, timeout, lambda: f"{count} requests ({len(self._requests)} came)"
        )
        return self.requests

    def wait_for_connections(self, count: int, timeout: float) -> None:
        """Wait until exactly *count* connections are open; see ConnectorServer."""
        self._wait(
            lambda: self._connections == count,
            timeout,
            lambda: f"{count} open connections (there are {self._connections})",
        )

    def wait_until_sent(self, count: int, timeout: float) -> None:
        """Wait until *count* events were sent; see ConnectorServer."""
        self._wait(lambda: self._sent >= count, timeout, lambda: f"{count} events sent ({self._sent} were)")

    def _wait(self, reached: Callable[[], bool], timeout: float, goal: Callable[[], str]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: reached() or self._closed, timeout)
            if reached():
                return
            why = "the server was closed" if self._closed else f"{timeout:g} s passed"
            raise TimeoutError(f"waited for {goal()}, and {why}")
