"""The way to one shard of a store: through a breaker, timed, with every error of the store turned into one kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from connector_sdk.background import OwnedTask, OwnedTasks
from connector_sdk.buffers.account import Account
from connector_sdk.buffers.breaker import Breaker
from connector_sdk.buffers.store import Census, EventStore
from connector_sdk.errors import BufferUnavailableError, ClientStateError, ConfigurationError

__all__ = ["MISUSE", "Gate"]

_log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

#: Errors of the program, not of the store: they go to the caller as they are, and say nothing about the store.
MISUSE = (ClientStateError, ConfigurationError)

#: Seconds that a probe has at least.
_PROBE_TIMEOUT = 0.5


class Gate:
    """
    One shard, its breaker, and the task that probes while the breaker is open. A probe has *timeout* seconds, 0.5 at least.

    *on_open* and *on_close* are called when the breaker has changed; *on_probe* before each probe; *on_service* after the
    first success ever and after each recovery.
    """

    def __init__(self, store: EventStore, shard: int, account: Account, tasks: OwnedTasks, timeout: float) -> None:
        self.shard = shard
        self.store = store
        self.name = store.name if store.shards == 1 else f"{store.name} shard {shard}"
        self.breaker = Breaker()
        self.on_open: Callable[[], object] = _nothing
        self.on_close: Callable[[], object] = _nothing
        self.on_probe: Callable[[], object] = _nothing
        self.on_service: Callable[[], object] = _nothing
        self._account = account
        self._tasks = tasks
        self._probe_timeout = max(_PROBE_TIMEOUT, timeout)
        self._prober: OwnedTask | None = None
        self._in_service = False

    @property
    def is_open(self) -> bool:
        """Whether the store is taken to be away."""
        return self.breaker.is_open

    def probe_soon(self) -> None:
        """See to it that somebody probes, though others may have cancelled the task that did."""
        if self._prober is None:
            self._prober = self._tasks.start(self._probe, f"probe {self.name}", self._probe_ended)

    async def call(
        self,
        operation: str,
        request: Callable[[], Awaitable[AnswerT]],
        count: Callable[[AnswerT], int] | int = 0,
        *,
        opens: bool = True,
    ) -> AnswerT:
        """
        Make a request; *count* says how many events it was about.

        A failure opens the breaker unless *opens* is false: a look at everything may fail because there is much to see.

        Raises BufferUnavailableError: the breaker is open (nothing was sent), or what the store raised. Any other error of
        the store is a bug of the store: it is logged, opens the breaker, and comes out as one in doubt. Errors of MISUSE
        come out as they are.
        """
        if self.breaker.is_open:
            self.probe_soon()
            raise BufferUnavailableError(f"{self.name} is away: {self.breaker.reason}")
        era = self.breaker.era
        started = time.monotonic()
        try:
            answer = await request()
        except BufferUnavailableError as error:
            if opens:
                self.failed(error, era)
            raise
        except MISUSE:
            raise
        except Exception as error:
            raise self.broken(operation, error, era, opens=opens) from error
        self.answered(operation, time.monotonic() - started, count if isinstance(count, int) else count(answer))
        return answer

    async def count(self, timeout: float) -> Census:
        """Take a census, without regard to the breaker, and note what was given up for it."""
        census = await self.store.census(self.shard, timeout=timeout)
        if census.dropped:
            self._account.evicted_by_store(census.dropped)
        return census

    def answered(self, operation: str, seconds: float, events: int) -> None:
        """Note a success."""
        notifier = self._account.notifier
        if notifier.active:
            notifier.tell("store_operation", store=self.name, operation=operation, seconds=seconds, events=events)
        if not self._in_service:
            self._in_service = True
            self.on_service()

    def failed(self, error: BufferUnavailableError, era: int) -> None:
        """Note a failure of a request that started in *era*. A store that is full is in service: it can be read."""
        if error.full:
            self._account.warnings.warning("full", "%s is full: %s", self.name, error)
        elif self.breaker.failed(time.monotonic(), era, str(error)):
            self._opened()

    def broken(self, operation: str, error: Exception, era: int, *, opens: bool = True) -> BufferUnavailableError:
        """Note an error that a store must not raise; return what it means to the caller."""
        kind = type(error).__name__
        self._account.warnings.warning(f"broken {kind}", "%s raised %s in %s", self.name, kind, operation)
        _log.debug("%s raised in %s", self.name, operation, exc_info=error)
        unavailable = BufferUnavailableError(f"{operation} ended with {kind}", in_doubt=True)
        if opens and self.breaker.failed(time.monotonic(), era, str(unavailable)):
            self._opened()
        return unavailable

    # -- inner

    def _opened(self) -> None:
        reason = self.breaker.reason
        self._account.outages += 1
        self._account.warnings.warning("breaker", "%s is away: %s", self.name, reason)
        self._account.notifier.tell("store_state", store=self.name, state=self.breaker.state, reason=reason)
        self.probe_soon()
        self.on_open()

    def _probe_ended(self) -> None:
        self._prober = None

    async def _probe(self) -> None:
        while self.breaker.is_open:
            await anyio.sleep(self.breaker.next_pause())
            self.on_probe()
            try:
                await self.count(self._probe_timeout)
            except BufferUnavailableError as error:
                if error.full:
                    self._closed()
            except Exception as error:  # noqa: BLE001 - whatever the store raises, the probing must go on
                self.broken("census", error, self.breaker.era)
            else:
                self._closed()

    def _closed(self) -> None:
        outage = self.breaker.answered(time.monotonic())
        if outage is None:
            return
        self._account.warnings.warning("back", "%s is back after %.1f s", self.name, outage)
        self._account.notifier.tell("store_state", store=self.name, state=self.breaker.state, reason="it answers again")
        self._in_service = True
        self.on_close()
        self.on_service()


def _nothing() -> None:
    pass
