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
    """Loads the id before the first request and saves it as events finish; without a store it does nothing."""

    def __init__(self, options: ClientOptions, lanes: Lanes, hooks: Hooks, notifier: Notifier) -> None:
        self._store = options.checkpoint
        self._stream = options.stream
        self._lanes = lanes
        self._hooks = hooks
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        self._saved_at = 0.0
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

    async def keep(self) -> None:
        """Save whenever the finished id moves on, until cancelled."""
        if self._store is None:
            return
        wake = current_waker()
        while True:
            moved = anyio.Event()
            self._lanes.when_id_finished(lambda moved=moved: wake(moved.set))  # type: ignore[misc]  # bound on purpose
            if self._lanes.finished_id == self.saved or self._lanes.finished_id is None:
                await moved.wait()
            await self.save()
            await anyio.sleep(SAVE_INTERVAL)

    async def save_if_due(self) -> None:
        """Save if the interval since the last save is over."""
        if self._store is not None and time.monotonic() - self._saved_at >= SAVE_INTERVAL:
            await self.save()

    async def save_last(self) -> None:
        """Save once more at the end, for at most five seconds."""
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
        try:
            store: object = self._store
            if self.token is not None and isinstance(store, FencedCheckpoint):
                await store.save_fenced(self._stream, event_id, self.token)
            else:
                await self._store.save(self._stream, event_id)
        except Exception as error:  # noqa: BLE001 - a store is not ours; unsaved ids only mean repeated events
            self.errors += 1
            self._log.warning("save", "the checkpoint could not be saved (%s): a restart repeats events", _shown(error))
            await self._hooks.call("error", error, None)
            return
        self.saved = event_id
        self._notifier.tell("checkpoint_saved", event_id=event_id, seconds=time.monotonic() - began)


def _shown(error: Exception) -> str:
    """The error for a log: of a store that is not ours only the type, for its text may hold a password."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, ConnectorError | OSError) else name
