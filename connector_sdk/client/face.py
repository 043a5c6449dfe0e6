"""What both clients have in common: the constructor, the registrations, the readings. The faces add how to wait."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, Self, TypeAlias, TypeVar, runtime_checkable

import anyio
import httpx

from connector_sdk.client.checkpoint import CheckpointStore
from connector_sdk.client.engine import Engine
from connector_sdk.client.handlers import ANY_TYPE, FailurePolicy, Handler, Handlers
from connector_sdk.client.hooks import Hooks
from connector_sdk.client.options import ClientOptions, Default, DefaultInt, OverflowPolicy, Token, resolve
from connector_sdk.client.session import ConnectionState, Gap
from connector_sdk.client.stats import ClientStats
from connector_sdk.errors import ConfigurationError
from connector_sdk.forks import start_empty_after_fork
from connector_sdk.leadership import Leadership
from connector_sdk.observe import Notifier
from connector_sdk.payloads import ActionsPayload, Payload, SummaryPayload
from connector_sdk.wakeups import current_waker

__all__ = ["ClientFace", "Sink"]

logger = logging.getLogger("connector_sdk.client")

PayloadT = TypeVar("PayloadT", bound=Payload)
Callback: TypeAlias = Callable[[PayloadT], object] | Callable[[PayloadT], Awaitable[object]]
Hook: TypeAlias = Callable[[], object] | Callable[[], Awaitable[object]]


class Sink(Protocol):
    """Anything with `add(payload)`, plain or async: every buffer of this library, and yours."""

    def add(self, payload: Payload, /) -> object:
        """Take one payload."""
        ...


@runtime_checkable
class Overflowing(Protocol):
    """The ability of a buffer to tell what it does with an event for which it has no place."""

    @property
    def overflow(self) -> str:
        """The policy: "drop_newest" for one that gives up the event that `add` was called with."""
        ...


class ClientFace:
    """
    The common part of AsyncConnectorClient and ConnectorClient.

    Args:
        url: the stream, `http(s)://host/stream/{product_id}`.
        token: sent as `Authorization: Bearer`, to this origin only; or a function, plain or async, that returns it: asked
            anew at each connect, and once more after a 401. Never logged.
        max_queue_size: how many events may wait for their callbacks, 1 or more. Default 500.
        overflow: what happens to an event that finds no place. "drop_newest" and "drop_oldest" drop it, or the oldest
            waiting, count it and tell `on_drop`; "block" pauses reading, so that nothing is dropped. Default: "drop_newest",
            but "block" when there is a checkpoint.
        session_concurrency: how many events of one session may be worked on at once. 1, the default, keeps their order.
        connect_timeout: seconds for TCP, TLS and sending the request. Default 10.
        read_timeout: seconds without a byte, comments count, after which a connection is dead. Default 90: three missed
            heartbeats.
        initial_backoff: upper bound in seconds of the first pause; it doubles with each failure, with full jitter.
            Default 1.
        max_backoff: upper bound of any pause that the server did not ask for, in seconds. Default 30.
        max_retries: failed attempts in a row after which the run ends with RetriesExhaustedError; 0 never tries again, None,
            the default, never gives up.
        healthy_after: seconds that a connection must stay open for the back-off to start over. Default 60.
        max_event_bytes: a larger event is dropped and counted, 1024 or more. Default 16 MiB.
        max_threads: how many plain callbacks may run at once, 1 or more. Default 32.
        checkpoint: where the id of the last finished event is kept, so that a restart goes on behind it.
        leader: of all processes with the same leadership, a `Leader`, one receives and the others stand by (state
            "standby"). Needs callbacks: such a client is not iterated over.
        on_connect: called without arguments after each connect; like `.on_connect(fn)`.
        on_disconnect: called without arguments when an open connection was lost; like `.on_disconnect(fn)`.
        observer: a hook for metrics: an Observer, or any object with some of its methods.
        http_client: your own httpx.AsyncClient (proxies, TLS, client certificates); it is used and never closed, on one
            event loop at a time.

    Each option from url to max_threads that is not given is taken from its environment variable, `CONNECTOR_` and the name
    in capitals (CONNECTOR_URL, CONNECTOR_TOKEN, CONNECTOR_MAX_RETRIES, ...), else it has its default.

    Raises ConfigurationError, naming option, value and what is allowed. Does no I/O.

    Registration may happen at any time, from any thread, and counts from the next event on.
    """

    def __init__(
        self,
        url: str = "",
        token: Token = "",
        *,
        max_queue_size: int = DefaultInt(500),
        overflow: OverflowPolicy | None = None,
        session_concurrency: int = DefaultInt(1),
        connect_timeout: float = Default(10.0),
        read_timeout: float = Default(90.0),
        initial_backoff: float = Default(1.0),
        max_backoff: float = Default(30.0),
        max_retries: int | None = None,
        healthy_after: float = Default(60.0),
        max_event_bytes: int = DefaultInt(16 * 1024 * 1024),
        max_threads: int = DefaultInt(32),
        checkpoint: CheckpointStore | None = None,
        leader: Leadership | None = None,
        on_connect: Hook | None = None,
        on_disconnect: Hook | None = None,
        observer: object | None = None,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in ClientOptions.__struct_fields__}
        self._options = resolve(given)
        self._handlers = Handlers()
        self._observer = observer
        notifier = Notifier(observer, logger)
        self._hooks = Hooks(notifier)
        self._engine = Engine(self._options, self._handlers, self._hooks, notifier)
        if on_connect is not None:
            self._hooks.add("connect", on_connect)
        if on_disconnect is not None:
            self._hooks.add("disconnect", on_disconnect)

        start_empty_after_fork(self)

    def after_fork_in_child(self) -> None:
        """Start anew: the client does not run here, has no events, and its account begins at zero."""
        notifier = Notifier(self._observer, logger)
        self._handlers.after_fork_in_child()
        self._hooks.after_fork_in_child(notifier)
        self._engine = Engine(self._options, self._handlers, self._hooks, notifier)

    # Registration

    def on_actions(self, fn: Callback[ActionsPayload], *, on_failure: FailurePolicy = "log") -> Self:
        """
        Call *fn* with each batch of actions.

        Args:
            fn: plain or async. Of one session, events come one at a time and in order (see session_concurrency). A plain
                function runs in a worker thread and may block, unless it is declared `quick`.
            on_failure: what to do when it raises: "log" and count it and go on; `Retry(...)`; "park", which puts the event
                aside for `take_parked()`; "stop", which ends the run with HandlerError, the event unfinished. `on_error`
                hears of it in every case.

        Returns the client, so that calls chain. Several callbacks for one type run in the order given.
        """
        return self._register(ActionsPayload.type, fn, on_failure)

    def on_summary(self, fn: Callback[SummaryPayload], *, on_failure: FailurePolicy = "log") -> Self:
        """Call *fn* with each summary; as `on_actions`."""
        return self._register(SummaryPayload.type, fn, on_failure)

    def on_event(self, event_type: str, fn: Callback[Payload], *, on_failure: FailurePolicy = "log") -> Self:
        """Call *fn* with each event of *event_type*, known to this version or not, or of every type with "*"."""
        return self._register(event_type, fn, on_failure)

    def into(self, buffer: Sink, *, on_failure: FailurePolicy | None = None) -> Self:
        """
        Put every event, of whatever type, into *buffer*: an EventBuffer, a BufferBackend, or anything with `add(payload)`.

        An EventBuffer that blocks when full is waited for without blocking the event loop.

        With a checkpoint an id is stored only when the buffer has the event. So a buffer whose `overflow` is "drop_newest"
        is a ConfigurationError then, and *on_failure*, when it is not given, is "stop" in place of "log": an event that
        the buffer refuses stays unfinished, the run ends, and a restart gets the event again.
        """
        if not callable(getattr(buffer, "add", None)):
            raise ConfigurationError("buffer", buffer, "an object with an add(payload) method, plain or async")
        resumes = self._options.checkpoint is not None
        if resumes and isinstance(buffer, Overflowing) and buffer.overflow == "drop_newest":
            raise ConfigurationError(
                "overflow",
                buffer.overflow,
                'for example "block" in a buffer behind a client with a checkpoint: the id of an event that the buffer '
                "dropped would be stored, and a restart would not ask for it again",
            )
        return self._register(ANY_TYPE, buffer.add, on_failure or ("stop" if resumes else "log"))

    def on_drop(self, fn: Callable[[Payload, int], object]) -> Self:
        """
        Call *fn(payload, total_dropped)* for each event that the client gives up and can still show.

        The reader waits for it, so a slow hook slows the reading down. Duplicates are not drops.
        """
        return self._add_hook("drop", fn)

    def on_connect(self, fn: Hook) -> Self:
        """Call *fn()* after each connect, once status and content type were checked, before the first event."""
        return self._add_hook("connect", fn)

    def on_disconnect(self, fn: Hook) -> Self:
        """Call *fn()* each time an open connection was lost."""
        return self._add_hook("disconnect", fn)

    def on_error(self, fn: Callable[[Exception, Payload | None], object]) -> Self:
        """Call *fn(error, payload)* when a callback raised, or, with None, for bytes that are no payload and the like."""
        return self._add_hook("error", fn)

    def on_gap(self, fn: Callable[[Gap], object]) -> Self:
        """Call *fn(gap)* when a reconnect could not be resumed, so that events may be missing."""
        return self._add_hook("gap", fn)

    def remove(self, fn: Callable[..., object]) -> Self:
        """Take out every registration of *fn*, callback or hook; ConfigurationError when there is none."""
        if not self._handlers.remove(fn) + self._hooks.remove(fn):
            raise ConfigurationError("fn", fn, "a callback or hook that was registered on this client")
        return self

    # Readings

    @property
    def state(self) -> ConnectionState:
        """Where the client is; a StrEnum, so `client.state == "open"` works."""
        return self._engine.session.state

    @property
    def closed_reason(self) -> str:
        """Why the last run ended, "" while one is on."""
        return self._engine.closed_reason

    @property
    def dropped_count(self) -> int:
        """Events given up since the client was made, duplicates left out; `stats().ledger.dropped` has the reasons."""
        return self._engine.lanes.dropped

    @property
    def queue_size(self) -> int:
        """Events waiting for their callbacks."""
        return self._engine.lanes.queued

    def stats(self) -> ClientStats:
        """One consistent reading of the account and the connection; cheap enough for once a second."""
        return self._engine.stats()

    def take_parked(self) -> list[Payload]:
        """Take the events that the policy "park" put aside, oldest first; they count as delivered from now on."""
        return self._engine.lanes.take_parked()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._options.stream} {self.state}, {self.queue_size} waiting, "
            f"{self.dropped_count} dropped>"
        )

    def _register(self, event_type: str, fn: Callable[..., object], on_failure: FailurePolicy) -> Self:
        self._handlers.add(event_type, Handler(fn, on_failure))
        return self

    def _add_hook(self, moment: str, fn: Callable[..., object]) -> Self:
        self._hooks.add(moment, fn)
        return self

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait on this event loop, whichever the run is on, until *reached()* at a change of state."""
        wake = current_waker()
        while not reached():
            changed = anyio.Event()
            unwatch = self._engine.watch(lambda changed=changed: wake(changed.set))  # type: ignore[misc]  # bound
            try:
                if not reached():
                    await changed.wait()
            finally:
                unwatch()
