"""Handlers of a bus, of whatever kind, as one coroutine function; and the `Message` for those that decide themselves."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeAlias, cast, runtime_checkable

import anyio
import anyio.to_thread

from connector_sdk.bus.events import Event
from connector_sdk.bus.log import Delivery
from connector_sdk.callbacks import is_async_callable, is_quick_callable
from connector_sdk.decisions import Reject, RetryAfter, RetryLater
from connector_sdk.errors import ConfigurationError, EventBusError

__all__ = ["BoundHandler", "Handler", "HandlerObject", "Message", "MessageOwner", "Subscriber", "is_delay"]


@runtime_checkable
class HandlerObject(Protocol):
    """An object that handles events."""

    @property
    def handle(self) -> Callable[..., object]:
        """What to call with the event."""


@runtime_checkable
class Subscriber(HandlerObject, Protocol):
    """An object that says itself what it is for: see `EventBus.subscribe_all`."""

    def subscribed_to(self) -> Iterable[str | type]:
        """Return topics, patterns and event classes."""


#: Gets the event, and a `Message` if it has a second parameter. Plain functions run in a worker thread unless `quick`.
Handler: TypeAlias = Callable[..., object] | HandlerObject


class MessageOwner(Protocol):
    """Who carries out what a `Message` is told."""

    def decide(self, message: Message, error: Exception | None) -> None:
        """The handler said what becomes of its entry: None, it is done; else as if it had raised *error*."""

    async def renew(self) -> None:
        """Say that the handler lives."""


class Message:
    """
    The delivery of an event, for a handler that decides itself: `async def handle(event, message)`.

    One of `ack`, `nack` and `reject` may be called, once; it counts at once, whatever the handler does afterwards. Without any
    of them returning acknowledges the event and raising fails the attempt.
    """

    __slots__ = ("_owner", "delivery", "event", "group", "settled")

    def __init__(self, owner: MessageOwner, event: Event, delivery: Delivery, group: str | None) -> None:
        self._owner = owner
        self.delivery = delivery
        #: What the handler got.
        self.event = event
        #: The group it was delivered to, None for a subscription without one.
        self.group = group
        #: Whether it was decided what becomes of it.
        self.settled = False

    @property
    def attempt(self) -> int:
        """1 at the first delivery."""
        return self.delivery.attempt

    @property
    def topic(self) -> str:
        """Where the event was published."""
        return self.delivery.topic

    @property
    def position(self) -> str:
        """Where the log has it within its topic."""
        return self.delivery.position

    async def ack(self) -> None:
        """It is done: the log is told soon. Raises EventBusError when it was decided before."""
        self._decide(None)

    async def nack(self, delay: float | None = None) -> None:
        """
        Bring it again, *delay* seconds (0 or more) from now; the attempt does not count.

        None: this attempt failed, and what follows is what follows a handler that raises.
        """
        if delay is None:
            self._decide(NackedError("the handler said that this attempt failed"))
        else:
            self._decide(RetryAfter(delay, "the handler asked for it"))

    async def reject(self, reason: str = "the handler rejected it") -> None:
        """Give it up: it goes to the dead letters at once, with *reason*."""
        self._decide(Reject(reason))

    async def in_progress(self) -> None:
        """
        Say that the handler is still at work.

        The bus does that by itself, as long as the process lives; call it in one that suspends its event loop for long.
        """
        await self._owner.renew()

    def _decide(self, error: Exception | None) -> None:
        if self.settled:
            raise EventBusError("it was decided before what becomes of this event")
        self.settled = True
        self._owner.decide(self, error)


class NackedError(EventBusError):
    """The handler failed without raising."""


class BoundHandler:
    """A handler made ready: `fast` is a coroutine function of the event alone, or None; `call` works for every kind."""

    def __init__(self, handler: Handler, limiter: Callable[[], anyio.CapacityLimiter]) -> None:
        fn = handler if callable(handler) else getattr(handler, "handle", None)
        if not callable(fn):
            raise ConfigurationError("handler", handler, "a function of an event, or an object with a method `handle`")
        self._fn: Callable[..., object] = fn
        self._limiter = limiter
        self._on_loop = is_async_callable(fn) or is_quick_callable(fn)
        #: Whether it gets a Message.
        self.wants_message = _wants_message(fn)
        self.fast: Callable[[Event], Awaitable[object]] | None = None
        if is_async_callable(fn) and not self.wants_message:
            self.fast = cast(Callable[[Event], Awaitable[object]], fn)
        #: Equal for equal handlers: two subscriptions with the same one call it once for an event.
        self.identity = _identity(fn)
        self.name: str = getattr(fn, "__qualname__", type(fn).__qualname__)

    async def call(self, event: Event, message: Message) -> None:
        """Call it, on the event loop or in a thread, and raise what it raises."""
        arguments = (event, message) if self.wants_message else (event,)
        if self._on_loop:
            result = self._fn(*arguments)
        else:
            result = await anyio.to_thread.run_sync(
                self._fn, *arguments, abandon_on_cancel=True, limiter=self._limiter()
            )
        if inspect.isawaitable(result):
            await result


def _wants_message(fn: Callable[..., object]) -> bool:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        return False
    positional = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(positional) < 2:
        return False
    # A second parameter with a default is the handler's own business: `lambda event, index=index: ...`.
    return positional[1].default is positional[1].empty or positional[1].name == "message"


def _identity(fn: Callable[..., object]) -> object:
    try:
        hash(fn)
    except TypeError:
        return id(fn)
    return fn


def is_delay(error: BaseException) -> bool:
    """Whether *error* is a wish to be called later rather than a failure."""
    return isinstance(error, RetryLater)
