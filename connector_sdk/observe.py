"""What the library tells the outside while it works: the Observer hook, and logs that are quiet and keep secrets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

__all__ = ["Notifier", "Observer", "RateLimitedLogger", "redact_url"]


class Observer:
    """
    A hook for metrics: subclass it and override what you need; every method is optional and takes keywords only.

    Methods are called from whichever thread the event happens in, outside every lock, and must be quick. One that
    raises is counted (`stats().observer_errors`) and harms nothing. Any object with some of these methods will do.
    """

    def connection_state(self, *, url: str, state: str, reason: str) -> None:
        """The client changed its state; *url* has no secrets, *state* is a `ConnectionState` value."""

    def events_received(self, *, count: int) -> None:
        """*count* events were read from the stream and decoded, once a batch."""

    def events_dropped(self, *, source: str, reason: str, count: int) -> None:
        """*source* ("client", "buffer" or "job") gave up *count* events for *reason*, a `DropReason` value."""

    def store_state(self, *, store: str, state: str, reason: str) -> None:
        """The breaker before a buffer's store is now "closed" (in service) or "open" (away); *store* has no secrets."""

    def store_operation(self, *, store: str, operation: str, seconds: float, events: int) -> None:
        """The store carried out *operation* ("append", "take", ...) for *events* events in *seconds*, once a batch."""

    def handler_failed(self, *, event_type: str, error: BaseException) -> None:
        """A callback for *event_type* raised *error*."""

    def gap_found(self, *, last_event_id: str, since: float | None) -> None:
        """The server could not resume: events after *last_event_id* (Unix time *since*) may be missing."""

    def checkpoint_saved(self, *, event_id: str, seconds: float) -> None:
        """The id was stored as the place to resume from; *seconds* is how long that took."""

    def job_run(self, *, job: str, events: int, seconds: float, outcome: str) -> None:
        """A run of *job* delivered *events*; *outcome* is "EMPTY" (nothing waits any more) or why it ended before that."""

    def job_handler_failed(self, *, job: str, events: int, error: BaseException) -> None:
        """The handler of *job*, called for *events* events, raised *error*."""

    def bus_state(self, *, bus: str, state: str) -> None:
        """The storage of *bus* (no secrets) is "unavailable", or "available" again."""

    def bus_handler_failed(self, *, subscription: str, event_type: str, error: BaseException, dead: bool) -> None:
        """An attempt at an event failed; *dead*: it went to the dead letters, else it comes again."""

    def bus_loss(self, *, topic: str, group: str | None, reason: str, count: int | None) -> None:
        """A subscription will never get *count* events (None: nobody can tell): "trimmed", "lost" or "overflow"."""


class Notifier:
    """Calls an Observer so that nothing it does can hurt: a missing method is skipped, an error is counted."""

    def __init__(self, observer: object | None, logger: logging.Logger) -> None:
        self._observer = observer
        self._log = RateLimitedLogger(logger)
        #: How many calls raised.
        self.errors = 0

    @property
    def active(self) -> bool:
        """Whether anybody listens; lets a hot path skip building arguments."""
        return self._observer is not None

    def tell(self, method: str, **facts: object) -> None:
        """Call *method* of the observer with *facts* as keywords."""
        if self._observer is None:
            return
        call: Callable[..., object] | None = getattr(self._observer, method, None)
        if call is None:
            return
        try:
            call(**facts)
        except Exception as error:  # noqa: BLE001 - the observer is not ours, and must harm nothing
            self.errors += 1
            self._log.warning("observer", "observer method %s raised %s", method, type(error).__name__)


class RateLimitedLogger:
    """
    Warnings that repeat are logged once per *interval* seconds and key, with the number held back.

    Thread-safe. Nothing is stored per message, only per key.
    """

    def __init__(
        self, logger: logging.Logger, interval: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._clock = clock
        self._interval = interval
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, int]] = {}

    def warning(self, key: str, message: str, *args: object) -> bool:
        """Log at WARNING unless the same *key* was logged within the interval; return whether it was logged."""
        now = self._clock()
        with self._lock:
            last, held = self._seen.get(key, (-self._interval, 0))
            if now - last < self._interval:
                self._seen[key] = (last, held + 1)
                return False
            self._seen[key] = (now, 0)
        if held:
            message += f" ({held} more like this in the last {self._interval:g} s were not logged)"
        self._logger.warning(message, *args)
        return True


def redact_url(url: str) -> str:
    """Return *url* without what may be secret: user and password, query and fragment."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "…" if parts.query else "", ""))
