"""The callbacks that hear of the client's own life: drops, errors, connections, gaps."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Final

import anyio.from_thread
import anyio.to_thread
from anyio.lowlevel import EventLoopToken

from connector_sdk.callbacks import is_async_callable
from connector_sdk.client.handlers import Handler
from connector_sdk.errors import ConfigurationError
from connector_sdk.observe import Notifier, RateLimitedLogger
from connector_sdk.payloads import Payload

__all__ = ["HOOKS", "Hooks"]

logger = logging.getLogger(__name__)

_LAST_WORD: Final = 1.0  # seconds for a hook that begins when everything is being cancelled

#: The moments one can hear of.
HOOKS: Final = ("connect", "disconnect", "drop", "error", "gap")


class Hooks:
    """
    Holds the hooks and calls them, each after the other; one that raises is logged, counted and harms nothing.

    A coroutine function is awaited on the event loop, a plain function runs in a worker thread, so that it may block.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._hooks: dict[str, list[Callable[..., object]]] = {moment: [] for moment in HOOKS}
        self._begin(notifier)

    def _begin(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._log = RateLimitedLogger(logger)
        #: How many calls of hooks raised.
        self.errors = 0
        #: How many callbacks for payloads raised, after their retries.
        self.handler_errors = 0

    def after_fork_in_child(self, notifier: Notifier) -> None:
        """Start anew, with the same hooks: locks of the parent may be held for ever."""
        self._begin(notifier)

    def add(self, moment: str, fn: Callable[..., object]) -> None:
        """Register *fn* for *moment*, one of HOOKS."""
        if not callable(fn):
            raise ConfigurationError(f"on_{moment}", fn, "a function or another callable")
        self._hooks[moment] = [*self._hooks[moment], fn]

    def remove(self, fn: object) -> int:
        """Take out every registration of *fn*; return how many there were."""
        removed = 0
        for moment, hooks in self._hooks.items():
            kept = [hook for hook in hooks if hook != fn]
            removed += len(hooks) - len(kept)
            self._hooks[moment] = kept
        return removed

    def has(self, moment: str) -> bool:
        """Whether anybody wants to hear of *moment*."""
        return bool(self._hooks[moment])

    async def call(self, moment: str, *arguments: object) -> None:
        """Call the hooks of *moment* from the event loop."""
        for hook in self._hooks[moment]:
            try:
                if is_async_callable(hook):
                    result = hook(*arguments)
                else:
                    result = await _in_thread(hook, arguments)
                if inspect.isawaitable(result):
                    await result
            except Exception as error:  # noqa: BLE001 - a hook is not ours, and must harm nothing
                self._failed(moment, error)

    def call_from_thread(self, token: EventLoopToken, moment: str, *arguments: object) -> None:
        """Call the hooks of *moment* from a worker thread; coroutine functions run on the loop of *token* meanwhile."""
        for hook in self._hooks[moment]:
            try:
                result = hook(*arguments)
                if inspect.isawaitable(result):
                    anyio.from_thread.run(wait_for, result, token=token)
            except Exception as error:  # noqa: BLE001 - a hook is not ours, and must harm nothing
                self._failed(moment, error)

    def handler_failed(self, handler: Handler, payload: Payload, error: BaseException) -> None:
        """Log and count a failed callback; telling the error hooks is the caller's."""
        self.handler_errors += 1
        self._log.warning(
            f"handler {handler.name}",
            "the callback %s raised %s for an event of type %s",
            handler.name,
            type(error).__name__,
            payload.type,
        )
        logger.debug("the callback %s raised", handler.name, exc_info=error)
        self._notifier.tell("handler_failed", event_type=payload.type, error=error)

    def _failed(self, moment: str, error: BaseException) -> None:
        self.errors += 1
        self._log.warning(f"hook {moment}", "an on_%s hook raised %s", moment, type(error).__name__)
        logger.debug("an on_%s hook raised", moment, exc_info=error)


async def _in_thread(hook: Callable[..., object], arguments: tuple[object, ...]) -> object:
    """Call a plain hook in a thread: also when we are cancelled before it began, for what it tells is told once."""
    calls = [hook]  # whoever pops it makes the call: this thread, or the one that is left alone

    def call() -> object:
        try:
            only = calls.pop()
        except IndexError:
            return None
        return only(*arguments)

    try:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        if calls:
            with anyio.move_on_after(_LAST_WORD, shield=True):
                await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        raise


async def wait_for(awaitable: object) -> object:
    """Await what a plain callable returned."""
    assert inspect.isawaitable(awaitable)
    return await awaitable
