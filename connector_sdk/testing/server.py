"""`ConnectorServer`: a connector that does what a script says, on a real socket of this machine."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import quote

from connector_sdk.errors import ClientStateError, ConfigurationError, ConnectorError
from connector_sdk.options import check_choice, check_integer, check_seconds
from connector_sdk.testing.connection import Settings
from connector_sdk.testing.engine import Engine, bind
from connector_sdk.testing.http11 import Event
from connector_sdk.testing.log import EventLog
from connector_sdk.testing.records import LoggedEvent, Request, Scoreboard
from connector_sdk.testing.script import Step, make_plans

__all__ = ["ConnectorServer"]

_PATIENCE: Final = 5.0  # seconds until a server that does not stop is reported
_HEARTBEATS: Final = {"event": b"event: heartbeat\ndata: {}\n\n", "comment": b": heartbeat\n\n"}


class ConnectorServer:
    """
    A connector on 127.0.0.1 that serves `GET /stream/{product_id}` and misbehaves by a script.

    It runs in a thread of its own, so tests of any kind use it alike, with `with` or `async with`::

        with ConnectorServer([one, two, three], script=[Cut(after_events=1, into_next=10)]) as server:
            client = ConnectorClient(server.url)

    That client gets event one and ten bytes of two, loses the connection, asks to resume after id 1 and gets the rest.
    All methods may be called from any thread; those named `wait_...` block (from async code:
    `await anyio.to_thread.run_sync(server.wait_for_requests, 2)`), without polling.

    Events have the ids "1", "2", ... in the order in which they *happen*: those of *events* when the first connection
    comes to them (with a *rate*, when their time has come), those of `publish` at once. A connection begins after its
    `Last-Event-ID`, without one at the earliest event that is kept. With `ids=False` nothing can be resumed: the first
    connection begins at the start, every later one with what has not happened yet, and the rest of an event that was cut
    is lost.

    Args:
        events: payloads, mappings, or raw JSON (bytes or str, sent as it is). A sequence is encoded at construction; an
            iterator is asked on the server's thread, one event at a time as they are needed, and must not block. What it
            raises ends the events, and is raised again by `close()`.
        ids: whether events have ids. Default True.
        rate: events a second (above 0), by the clock from the first connection on, whether or not anybody listens. None,
            the default: as fast as they are read.
        product_id: the last part of the path. Default "demo".
        token: the bearer token that requests must have; others get 401. None, the default: no check.
        script: what happens to the first connection, the second, ...; after the last step, normal service. Only requests
            that path, method and token let through take a step. A sequence is checked at construction; an iterator (an
            endless one, perhaps) is asked at each connection.
        heartbeat: seconds without an event until one is sent (above 0); None: never. Default 30.
        heartbeat_as: "event" (the default, an `event: heartbeat` with data `{}`) or "comment" (a `: heartbeat` line).
        retry: milliseconds that clients are told to wait before they reconnect, at the start of each stream; None: nothing.
        loop: begin again, with new ids, after the last of *events*; those of an iterator are remembered for that.
        end: what follows the last event. "hold" (the default): the connection stays open. "close": the answer ends
            properly. "stop": it ends, and a request with nothing left to send is answered 204, which ends a client's run.
        history: how many of the latest events can be resumed (0 or more); older ones are forgotten. A client that asks
            for one of those begins at the earliest event kept and is told by the response header `Last-Event-ID:
            earliest` (as in the Mercure protocol; a resumed one gets its own id back). None, the default: all.
        replay: whether a connection without `Last-Event-ID` begins at the earliest event kept, or else with what has not
            happened yet. None, the default: as *ids*.
        port: 0, the default, is any that is free.

    Raises:
        ConfigurationError: an option cannot work, or (on entering) the port is taken.
    """

    def __init__(
        self,
        events: Iterable[Event] = (),
        *,
        ids: bool = True,
        rate: float | None = None,
        product_id: str = "demo",
        token: str | None = None,
        script: Step | Iterable[Step] = (),
        heartbeat: float | None = 30.0,
        heartbeat_as: Literal["event", "comment"] = "event",
        retry: int | None = None,
        loop: bool = False,
        end: Literal["hold", "close", "stop"] = "hold",
        history: int | None = None,
        replay: bool | None = None,
        port: int = 0,
    ) -> None:
        _check_rate(rate)
        if not isinstance(product_id, str) or not product_id:
            raise ConfigurationError("product_id", product_id, "a text that is not empty")
        if token is not None and (not isinstance(token, str) or not token):
            raise ConfigurationError("token", token, "None or a text that is not empty", secret=True)
        if history is not None:
            check_integer("history", history, minimum=0)
        self._settings = Settings(
            product_id=product_id,
            token=token,
            heartbeat=None if heartbeat is None else check_seconds("heartbeat", heartbeat, above=0),
            heartbeat_block=_HEARTBEATS[check_choice("heartbeat_as", heartbeat_as, _HEARTBEATS)],
            retry=None if retry is None else check_integer("retry", retry, minimum=0),
            end=check_choice("end", end, ("hold", "close", "stop")),
            replay=ids if replay is None else replay,
        )
        self._wanted_port = check_integer("port", port, minimum=0, maximum=65535)
        self._rate = rate
        self._plans = make_plans(script)
        self._log = EventLog(events, ids=ids, loop=loop, history=history, paced=rate is not None)
        self._board = Scoreboard()
        self._port: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._engine: Engine | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not started" if self._port is None else self.url
        return f"<ConnectorServer {state}, {self.connections} connections, {self.sent} events sent>"

    # From start to end.

    def start(self) -> Self:
        """
        Listen and serve; return the server itself. `with` does this.

        Connections are taken from the moment it returns. Raises ConfigurationError when the port is taken and
        ClientStateError when the server was started before.
        """
        if self._thread is not None or self._closed:
            raise ClientStateError("this ConnectorServer was started before; make a new one")
        try:
            listener = bind(self._wanted_port)
        except OSError as error:
            raise ConfigurationError("port", self._wanted_port, f"a free port of 127.0.0.1 ({error})") from error
        listener.listen()  # the kernel takes connections from here on, whenever the thread comes to accept them
        self._port = listener.getsockname()[1]
        # Not what a policy may choose (uvloop): what is written here, and when, must be the same everywhere.
        loop = self._loop = asyncio.SelectorEventLoop()
        engine = self._engine = Engine(
            loop, settings=self._settings, log=self._log, board=self._board, plans=self._plans, rate=self._rate
        )

        def serve() -> None:
            try:
                loop.run_until_complete(engine.run(listener))
            finally:
                loop.close()
                self._board.close()

        self._thread = threading.Thread(target=serve, name=f"ConnectorServer-{self._port}", daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """
        Cut all connections and stop, at once; may be called again.

        Raises what the iterator of events raised, or any other error met while serving (a mistake of ours).
        """
        self._stop()
        errors = self._errors()
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self._stop()
        for cause in self._errors():  # the test's own error comes first, but this may be why
            error.add_note(f"while serving, ConnectorServer met {cause!r}")

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    # Doing things while it runs.

    def publish(self, event: Event) -> str:
        """
        Let one more event happen, now; return its id ("" with `ids=False`).

        What a sequence of *events* still holds happens before it; an iterator, a loop, or events with a *rate* go on after
        it. Raises ConfigurationError for what is no event, and ClientStateError once the server is closed.
        """
        if self._closed:
            raise ClientStateError("this ConnectorServer was closed; nobody would get the event")
        event_id = self._log.publish(event)
        if self._engine is not None:
            self._engine.notify()
        return event_id

    def cut(self, *, reset: bool = False) -> int:
        """
        End all open connections now, wherever they are; return how many there were.

        They are closed when it returns, with a TCP reset if *reset*. (Called by the iterator of events: soon after.)
        """
        engine, loop = self._running()
        if threading.current_thread() is self._thread:
            return len(engine.cut_soon(reset=reset))
        return asyncio.run_coroutine_threadsafe(engine.cut(reset=reset), loop).result(_PATIENCE)

    def stop_accepting(self) -> None:
        """Refuse new connections, as a host does where nothing listens. Open ones go on; the port stays ours."""
        engine, loop = self._running()
        asyncio.run_coroutine_threadsafe(_call(engine.stop_accepting), loop).result(_PATIENCE)

    def start_accepting(self) -> None:
        """Take new connections again, on the same port."""
        engine, loop = self._running()
        asyncio.run_coroutine_threadsafe(_call(engine.start_accepting), loop).result(_PATIENCE)

    def restart(self) -> None:
        """Cut all connections and listen again on the same port, as a server does that is replaced; the log is kept."""
        engine, loop = self._running()
        asyncio.run_coroutine_threadsafe(engine.restart(), loop).result(_PATIENCE)

    # What happened.

    @property
    def url(self) -> str:
        """The address of the stream, for the client."""
        return f"http://127.0.0.1:{self.port}/stream/{quote(self._settings.product_id, safe='')}"

    @property
    def port(self) -> int:
        """The port; raises ClientStateError before the server was started."""
        if self._port is None:
            raise ClientStateError("this ConnectorServer has no port yet: enter it with `with`, or call start()")
        return self._port

    @property
    def requests(self) -> list[Request]:
        """All requests that were read, oldest first, whatever was answered."""
        return self._board.requests

    @property
    def connections(self) -> int:
        """How many requests are being answered now."""
        return self._board.connections

    @property
    def sent(self) -> int:
        """How many events were given to the network completely, over all connections, repeated ones included."""
        return self._board.sent

    @property
    def log(self) -> list[LoggedEvent]:
        """The events that have happened, oldest first, as far as *history* keeps them."""
        return self._log.events

    def wait_for_requests(self, count: int, timeout: float = 5.0) -> list[Request]:
        """
        Wait until *count* requests were read; return all there are.

        Raises TimeoutError, saying how many came, after *timeout* seconds or when the server is closed meanwhile.
        """
        return self._board.wait_for_requests(count, timeout)

    def wait_for_connections(self, count: int, timeout: float = 5.0) -> None:
        """Wait until exactly *count* requests are being answered, 0 included; TimeoutError as `wait_for_requests`."""
        self._board.wait_for_connections(count, timeout)

    def wait_until_sent(self, count: int, timeout: float = 5.0) -> None:
        """Wait until `sent` is *count* or more; TimeoutError as `wait_for_requests`."""
        self._board.wait_until_sent(count, timeout)

    def _running(self) -> tuple[Engine, asyncio.AbstractEventLoop]:
        if self._closed or self._engine is None or self._loop is None:
            raise ClientStateError("this ConnectorServer is not running")
        return self._engine, self._loop

    def _stop(self) -> None:
        was_closed, self._closed = self._closed, True
        if was_closed or self._thread is None or self._engine is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._engine.stop)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise ConnectorError(
                f"the ConnectorServer did not stop within {_PATIENCE:g} s: does its iterator of events block?"
            )

    def _errors(self) -> list[BaseException]:
        errors = list(self._engine.errors) if self._engine is not None else []
        return errors if self._log.error is None else [self._log.error, *errors]


async def _call(action: Callable[[], None]) -> None:
    action()


def _check_rate(rate: object) -> None:
    if rate is None or (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate < math.inf):
        return
    raise ConfigurationError("rate", rate, "None or a finite number of events a second, above 0")
