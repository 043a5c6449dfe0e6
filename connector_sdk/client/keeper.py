"""Keeps the checkpoint up with the finished id: one save at a time, the latest id only."""

from __future__ import annotations

import logging
import time
from typing import Final

import anyio

from connector_sdk.client.checkpoint import Disconnecting, FencedCheckpoint
from connector_sdk.client.hooks import Hooks
from connector_sdk.client.lanes import Lanes
from connector_sdk.client.options import ClientOptions
from connector_sdk.errors import CheckpointError, ConnectorError
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.wakeups import current_waker

__all__ = ["CheckpointKeeper"]

logger = logging.getLogger(__name__)

#: Seconds between two saves at least: what a killed process repeats is what it finished in that time.
SAVE_INTERVAL: Final = 0.1
_LAST_SAVE_TIMEOUT: Final = 5.0


class CheckpointKeeper:
    """
    Loads the id before the first request and saves it as events finish; without a store it does nothing.

    With a leader it saves in a term only, between `begin_term` and `end_term`: what was finished here is no place to go on
    as long as another may lead.
    """

    def __init__(self, options: ClientOptions, lanes: Lanes, hooks: Hooks, notifier: Notifier) -> None:
        self._store = options.checkpoint
        self._stream = options.stream
        self._lanes = lanes
        self._hooks = hooks
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._saved_at = 0.0
        self._is_between_terms = options.leader is not None
        #: Wakes `keep`.
        self._moved: anyio.Event | None = None
        #: The id and the token that were refused, because a later leader has saved.
        self._refused: tuple[str, int] | None = None
        #: The fencing token of the term in which the events were received; None without a leader.
        self.token: int | None = None
        #: The id in the store, as far as we know.
        self.saved: str | None = None
        #: Saves that failed.
        self.errors = 0

    async def load(self) -> str:
        """The id to resume after, "" for none. Raises CheckpointError when the store cannot tell."""
        if self._store is None:
            return ""
        try:
            self.saved = await self._store.load(self._stream)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"the checkpoint store could not load: {_shown(error)}") from error
        return self.saved or ""

    def begin_term(self, token: int) -> None:
        """Save from now on, with *token*. The finished id must be the place from which this term goes on."""
        self.token = token
        self._is_between_terms = False
        if self._moved is not None:
            self._moved.set()

    async def end_term(self) -> None:
        """Save once more, for at most five seconds, and nothing after that until the next term; also when cancelled."""
        try:
            if not self._is_between_terms:
                await self.save_last()
        finally:
            self._is_between_terms = True

    async def keep(self) -> None:
        """Save whenever the finished id moves on, until cancelled. What a later leader had refused is not repeated."""
        if self._store is None:
            return
        wake = current_waker()
        while True:
            moved = self._moved = anyio.Event()
            self._lanes.when_id_finished(lambda moved=moved: wake(moved.set))  # type: ignore[misc]  # bound on purpose
            if self._is_between_terms or self._is_refused or self._lanes.finished_id in (self.saved, None):
                await moved.wait()
            if not self._is_between_terms and not self._is_refused:
                await self.save()
            await anyio.sleep(SAVE_INTERVAL)

    async def save_if_due(self) -> None:
        """Save if the interval since the last save is over."""
        if self._store is not None and time.monotonic() - self._saved_at >= SAVE_INTERVAL:
            await self.save()

    async def save_last(self) -> None:
        """
        Save once more at the end, for at most five seconds.

        After a term only a store that knows of tokens gets what was finished late: another would take it over a later
        leader's.
        """
        is_fenced = self.token is not None and isinstance(self._store, FencedCheckpoint)
        if self._is_between_terms and (self._is_refused or not is_fenced):
            return
        with anyio.move_on_after(_LAST_SAVE_TIMEOUT, shield=True):
            await self.save()

    async def disconnect(self) -> None:
        """Let the store close what belongs to this event loop."""
        store: object = self._store
        if isinstance(store, Disconnecting):
            with anyio.move_on_after(_LAST_SAVE_TIMEOUT, shield=True):
                await store.disconnect()

    async def save(self) -> None:
        """Save the finished id if it is not the saved one. A failure is counted and told; the stream goes on."""
        event_id = self._lanes.finished_id
        if self._store is None or event_id is None or event_id == self.saved:
            return
        began = self._saved_at = time.monotonic()
        token = self.token
        try:
            store: object = self._store
            if token is not None and isinstance(store, FencedCheckpoint):
                await store.save_fenced(self._stream, event_id, token)
            else:
                await self._store.save(self._stream, event_id)
        except Exception as error:  # noqa: BLE001 - a store is not ours; unsaved ids only mean repeated events
            self.errors += 1
            # A store that is away says why; one that refuses has no other error behind it, and would refuse again.
            if token is not None and isinstance(error, CheckpointError) and error.__cause__ is None:
                self._refused = (event_id, token)
            self._log.warning("save", "the checkpoint could not be saved (%s): a restart repeats events", _shown(error))
            await self._hooks.call("error", error, None)
            return
        self.saved = event_id
        self._notifier.tell("checkpoint_saved", event_id=event_id, seconds=time.monotonic() - began)

    @property
    def _is_refused(self) -> bool:
        return self._refused is not None and self._refused == (self._lanes.finished_id, self.token)


def _shown(error: Exception) -> str:
    """The error for a log: of a store that is not ours only the type, for its text may hold a password."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, ConnectorError | OSError) else name
