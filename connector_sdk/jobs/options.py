"""The options of a job, checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec

from connector_sdk.buffers.arguments import check_flag, check_wanted_types
from connector_sdk.buffers.dead_letters import Evidence
from connector_sdk.callbacks import is_async_callable
from connector_sdk.errors import ConfigurationError
from connector_sdk.jobs.caller import Handler
from connector_sdk.leadership import Leadership
from connector_sdk.options import check_integer, check_seconds
from connector_sdk.payloads import Payload

__all__ = ["Bury", "DeadLetterPlace", "ErrorHook", "JobOptions", "check_options"]

#: Told of each failed call of the handler: the error, and the events of the call. A plain function, called on the event loop.
ErrorHook: TypeAlias = Callable[[BaseException, list[Payload]], object]
#: Keeps an event that is given up, or raises.
Bury: TypeAlias = Callable[[Payload, Evidence], Awaitable[object] | object]


@runtime_checkable
class DeadLetterPlace(Protocol):
    """A place of your own for events that are given up."""

    async def add(self, payload: Payload, evidence: Evidence) -> object:
        """Keep *payload*. When this returns, the buffer lets it go; when it raises, the event comes again."""


class JobOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a job was told, checked; see `DrainJob`."""

    name: str
    interval: float
    jitter: float
    batch_size: int
    trigger_size: int | None
    types: frozenset[str] | None
    max_attempts: int | None
    patience: float
    retry_initial: float
    retry_max: float
    lease_timeout: float
    exclusive: bool
    stop_timeout: float
    progress_limit: float
    bury: Bury | None
    leader: Leadership | None
    on_error: ErrorHook | None
    observer: object | None


def check_options(
    *,
    handler: Handler,
    name: str,
    interval: float,
    jitter: float,
    batch_size: int,
    trigger_size: int | None,
    types: Collection[str] | None,
    max_attempts: int | None,
    patience: float,
    retry_initial: float,
    retry_max: float,
    lease_timeout: float,
    exclusive: bool,
    stop_timeout: float,
    progress_limit: float,
    dead_letters: DeadLetterPlace | Bury | None,
    leader: Leadership | None,
    on_error: ErrorHook | None,
    observer: object | None,
) -> JobOptions:
    """Return the options if they can work, else raise ConfigurationError."""
    if not callable(handler):
        raise ConfigurationError("handler", handler, "a function, plain or async, that takes a list of payloads")
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise ConfigurationError("name", name, "one line of text")
    if check_seconds("jitter", jitter) >= 1:
        raise ConfigurationError("jitter", jitter, "a part of the interval, from 0 to below 1")
    if leader is not None and not isinstance(leader, Leadership):
        raise ConfigurationError("leader", leader, "a Leader, or None")
    if on_error is not None and (not callable(on_error) or is_async_callable(on_error)):
        raise ConfigurationError("on_error", on_error, "a plain function that takes an error and a list of payloads")
    retry_initial = check_seconds("retry_initial", retry_initial, above=0)
    return JobOptions(
        name=name,
        interval=check_seconds("interval", interval, above=0),
        jitter=float(jitter),
        batch_size=check_integer("batch_size", batch_size, minimum=1),
        trigger_size=None if trigger_size is None else check_integer("trigger_size", trigger_size, minimum=1),
        types=check_wanted_types(types),
        max_attempts=None if max_attempts is None else check_integer("max_attempts", max_attempts, minimum=1),
        patience=check_seconds("patience", patience),
        retry_initial=retry_initial,
        retry_max=check_seconds("retry_max", retry_max, minimum=retry_initial),
        lease_timeout=check_seconds("lease_timeout", lease_timeout, above=0),
        exclusive=check_flag("exclusive", exclusive),
        stop_timeout=check_seconds("stop_timeout", stop_timeout),
        progress_limit=check_seconds("progress_limit", progress_limit, above=0),
        bury=_bury_of(dead_letters),
        leader=leader,
        on_error=on_error,
        observer=observer,
    )


def _bury_of(place: DeadLetterPlace | Bury | None) -> Bury | None:
    if place is None:
        return None
    if isinstance(place, DeadLetterPlace):
        return place.add
    if callable(place):
        return place
    raise ConfigurationError(
        "dead_letters", place, "an object with add(payload, evidence), a function of these two, or None"
    )
