"""
Everything this library raises on purpose.

::

    ConnectorError
    ├── ConfigurationError (also ValueError)     an option, a URL or a file that cannot work
    ├── PayloadError (also ValueError)           bytes that are no payload
    ├── ClientStateError (also RuntimeError)     a client used in a state that does not allow it
    ├── StreamError                              the stream of a connector
    │   ├── TransientStreamError                 worth trying again; the client does
    │   │   └── RetriesExhaustedError            `max_retries` attempts in a row did not help
    │   └── FatalStreamError                     trying again cannot help
    ├── HandlerError                             a callback failed and its policy is to stop
    ├── RetryLater (in decisions)                raised by your handler: what it needs is away, no event is to blame
    │   └── RetryAfter (in decisions)            the same, with a time
    ├── Reject (in decisions)                    raised by your handler of a bus: to the dead letters at once
    ├── CheckpointError                          the place to resume from cannot be read or written
    ├── EventBufferError                         a buffer
    │   ├── BufferFullError                      no place, and the overflow policy is to say so
    │   ├── BufferClosedError                    used after it was closed
    │   ├── BufferUnavailableError               the store behind it did not answer, or refused
    │   ├── PutBackError (in buffers.protocol)   events taken out for a moment could not be put back
    │   └── LeaseError                           a lease used after its end
    │       └── LeaseExpiredError                it ran out; its events come again
    └── EventBusError                            the event bus, or a consumer of streams
        ├── BusClosedError                       used before it was connected, or after it was closed
        ├── BusUnavailableError                  the storage behind it did not answer, or refused
        └── UnknownEventError                    an event whose type or version nobody has registered

`except ConnectorError` catches all of them. Facts are attributes; the message is for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

__all__ = [
    "BufferClosedError",
    "BufferFullError",
    "BufferUnavailableError",
    "BusClosedError",
    "BusUnavailableError",
    "CheckpointError",
    "ClientStateError",
    "ConfigurationError",
    "ConnectorError",
    "EventBufferError",
    "EventBusError",
    "FatalStreamError",
    "HandlerError",
    "LeaseError",
    "LeaseExpiredError",
    "PayloadError",
    "RetriesExhaustedError",
    "StreamError",
    "TransientStreamError",
    "UnknownEventError",
]


class ConnectorError(Exception):
    """The root of every error that connector_sdk raises on purpose."""


class ConfigurationError(ConnectorError, ValueError):
    """
    An option has a value that cannot work.

    Raised at construction, before any I/O. `option` names the parameter (or the environment variable),
    `given` is the value's repr ("<hidden>" for a secret), `allowed` says what would do.
    """

    def __init__(self, option: str, given: object, allowed: str, *, secret: bool = False) -> None:
        self.option = option
        self.given = "<hidden>" if secret else repr(given)
        self.allowed = allowed
        super().__init__(f"{option}={self.given} cannot be used: it must be {allowed}")


class PayloadError(ConnectorError, ValueError):
    """
    Bytes or a mapping that are no payload.

    `reason` says why; `excerpt` holds up to 200 characters of what was given, for people and not for logs.
    """

    def __init__(self, reason: str, excerpt: str = "") -> None:
        self.reason = reason
        self.excerpt = excerpt[:200]
        super().__init__(reason)


class ClientStateError(ConnectorError, RuntimeError):
    """The client is in a state that does not allow the call, for example `run()` while it is running."""


class StreamError(ConnectorError):
    """
    The stream of a connector failed.

    `status` is the HTTP status, None when there was no answer. `headers` are the answer's, lower-case names.
    """

    def __init__(self, message: str, *, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers: Mapping[str, str] = headers or {}
        super().__init__(message)


class TransientStreamError(StreamError):
    """
    The attempt failed in a way that another one may mend.

    `retry_after` is the wait in seconds that the server asked for, None without one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.retry_after = retry_after
        super().__init__(message, status=status, headers=headers)


class RetriesExhaustedError(TransientStreamError):
    """`max_retries` attempts in a row failed; the last failure is `__cause__`, `attempts` counts them."""

    def __init__(self, message: str, *, attempts: int, status: int | None = None) -> None:
        self.attempts = attempts
        super().__init__(message, status=status)


class FatalStreamError(StreamError):
    """
    The server answered in a way that no retry can mend.

    `body_start` holds up to the first 200 bytes of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
        body_start: bytes = b"",
    ) -> None:
        self.body_start = body_start
        super().__init__(message, status=status, headers=headers)


class HandlerError(ConnectorError):
    """
    A callback raised and its failure policy is to stop the client, or a handler of a stream's consumer failed for good.

    What it raised is `__cause__`.
    """

    @classmethod
    def of(cls, name: str, cause: BaseException) -> Self:
        """The error for the callback *name* that raised *cause*."""
        error = cls(f"the callback {name} raised {type(cause).__name__}, and its policy is to stop the client")
        error.__cause__ = cause
        return error


class CheckpointError(ConnectorError):
    """The place to resume from could not be read or written, or belongs to another stream."""


class EventBufferError(ConnectorError):
    """The root of what buffers raise. (`BufferError` alone is a Python builtin with another meaning.)"""


class BufferFullError(EventBufferError):
    """
    There was no place for a payload, and the overflow policy is "raise" (or "block", and time ran out).

    The payload was not taken: the caller still has it. It counts as received and as dropped.
    """


class BufferClosedError(EventBufferError):
    """The buffer was closed."""


class BufferUnavailableError(EventBufferError):
    """
    The store behind a buffer did not answer, or refused: it is down, unreachable, starting, or out of memory.

    `in_doubt` is true when the request may have been carried out all the same: it was sent and no answer came. `full` is
    true when the store answered that it has no memory or disk left.
    """

    def __init__(self, message: str, *, in_doubt: bool = False, full: bool = False) -> None:
        self.in_doubt = in_doubt
        self.full = full
        super().__init__(message)


class LeaseError(EventBufferError):
    """A lease was used after it was acknowledged or given back."""


class LeaseExpiredError(LeaseError):
    """The lease ran out before it was acknowledged; its events were given back and come again."""


class EventBusError(ConnectorError):
    """The root of what the event bus and the consumers of streams raise."""


class BusClosedError(EventBusError):
    """The bus or consumer was used before it was connected, or after it was closed."""


class BusUnavailableError(EventBusError):
    """
    The storage behind the bus did not answer, or refused: it is down, unreachable, starting, or out of memory.

    `in_doubt` is true when the request may have been carried out all the same: it was sent and no answer came.
    """

    def __init__(self, message: str, *, in_doubt: bool = False) -> None:
        self.in_doubt = in_doubt
        super().__init__(message)


class UnknownEventError(EventBusError):
    """
    An event has a type or a version that is not registered, so its payload cannot become an object.

    `event_type` and `version` say which, `known` lists what is registered.
    """

    def __init__(self, event_type: str, version: int | None, known: tuple[str, ...]) -> None:
        self.event_type = event_type
        self.version = version
        self.known = known
        named = event_type if version is None else f"{event_type} version {version}"
        super().__init__(f"{named} is not registered; registered are: {', '.join(known) or 'none'}")
