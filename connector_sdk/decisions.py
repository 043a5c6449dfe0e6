"""What a handler raises to decide itself what becomes of the event, or the batch, that it was given."""

from __future__ import annotations

from connector_sdk.errors import ConnectorError
from connector_sdk.options import check_seconds

__all__ = ["Reject", "RetryAfter", "RetryLater"]


class RetryLater(ConnectorError):  # noqa: N818 - a handler says what is to be done
    """
    Raised by a handler: what it needs is away, and no event is to blame.

    A job neither splits the batch nor counts the attempt against its events; a bus does not count the attempt either. It is
    tried again after a pause of at least *after* seconds (None for the job's or the subscription's own pauses).
    """

    def __init__(self, message: str = "the handler asks to be called later", *, after: float | None = None) -> None:
        self.after = after
        super().__init__(message)


class RetryAfter(RetryLater):
    """
    Raised by a handler: call it again with this event *seconds* (0 or more) from now; the attempt does not count.

    Raises ConfigurationError for seconds that are no finite number.
    """

    after: float

    def __init__(self, seconds: float, message: str = "the handler asks to be called later") -> None:
        super().__init__(message, after=check_seconds("seconds", seconds))


class Reject(ConnectorError):  # noqa: N818 - a handler says what is to be done
    """Raised by a handler of a bus: trying again cannot help, the event goes to the dead letters at once, with *reason*."""

    def __init__(self, reason: str = "the handler rejected it") -> None:
        self.reason = reason
        super().__init__(reason)
